"""The model as the server's process knows it: its names, its tokenizer and its defaults, and no weights."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from pipezoo.serve.errors import UnknownModelError
from pipezoo_core.chat_responses import ChatFormat
from pipezoo_core.errors import shown
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pipezoo_core.tokenizer import TextTokenizer

__all__ = ["ServedModel"]

_NUM_THREADS = 4  # so that a long prompt does not hold up a short one

Result = TypeVar("Result")


class ServedModel:
    """Makes prompts for the engine, in threads, so that the event loop goes on.

    Args:
        names: by which clients ask for it; the first one is in answers.
        tokenizer: of the same files as the engine's.

    Attributes:
        chat_format: how its chats are written and read.
        created: when it was made, in seconds of the epoch.
    """

    def __init__(self, names: Sequence[str], tokenizer: TextTokenizer) -> None:
        self.names = tuple(names)
        self.tokenizer = tokenizer
        self.chat_format = ChatFormat.of(tokenizer.delegate, tokenizer.special_texts)
        self.created = int(time.time())
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="pipezoo-prompts")

    @property
    def defaults(self) -> SamplingParams:
        """The settings of requests that bring none."""
        return self.tokenizer.sampling_params

    def adapter_of(self, name: str | None, adapters: Sequence[str]) -> str | None:
        """Returns which adapter a client asks for by a model's name; None for the model as it is.

        Raises:
            UnknownModelError: neither the model nor an adapter has this name.
        """
        if name is None or name in self.names:
            return None
        if name not in adapters:
            raise UnknownModelError(
                "there is no such model here", found=shown(name), allowed=", ".join([*self.names, *adapters])
            )
        return name

    async def prompt_tokens(self, request: TextGenerationRequest, params: SamplingParams) -> list[int]:
        """Returns the tokens of a request. Raises what `TextTokenizer.prompt_tokens` does."""
        return await self.in_thread(lambda: self.tokenizer.prompt_tokens(request, params))

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Does in a thread what takes long."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
