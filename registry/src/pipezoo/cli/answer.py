"""One answer of a model while it comes: its text so far, why it ended, and how long it took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from pipezoo_core.request import GenerationStatus, Prompt

if TYPE_CHECKING:
    from pipezoo_core.pipeline import TextGenerationPipeline

__all__ = ["Answer"]


class Answer:
    """What a model has answered so far. When something ends it early, what there is of it stays.

    Attributes:
        text: as far as it has come.
        num_tokens: generated so far, an end token included.
        status: why it ended; `ACTIVE` until it has by itself.
        seconds: from the request to the latest token.
        first_seconds: from the request to the first token, which is when the prompt is through; None before.
    """

    def __init__(self) -> None:
        self.text = ""
        self.num_tokens = 0
        self.status = GenerationStatus.ACTIVE
        self.seconds = 0.0
        self.first_seconds: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """How fast tokens came after the first one, whose time is the prompt's; 0 where there is no second one."""
        decoding = self.seconds - (self.first_seconds or 0.0)
        return (self.num_tokens - 1) / decoding if self.num_tokens > 1 and decoding > 0 else 0.0

    def stream(self, llm: TextGenerationPipeline, prompt: Prompt, show: Callable[[str], None], **sampling: Any) -> None:
        """Lets the model answer, and shows each piece of text when it is there.

        Raises:
            KeyboardInterrupt: Ctrl-C. The request is ended then, and its memory is free.
            What `TextGenerationPipeline.generate` does for a prompt by itself, and what `show` does.
        """
        asyncio.run(self._stream(llm, prompt, show, sampling))  # in which Ctrl-C never ends a step in its middle

    async def _stream(
        self, llm: TextGenerationPipeline, prompt: Prompt, show: Callable[[str], None], sampling: dict[str, Any]
    ) -> None:
        begin = time.perf_counter()
        async with aclosing(llm.generate_async(prompt, **sampling)) as steps:
            async for outputs in steps:
                self.seconds = time.perf_counter() - begin
                for output in outputs:
                    self.text += output.text
                    self.num_tokens += len(output.tokens)
                    self.status = output.final_status
                    show(output.text)
                if self.first_seconds is None and self.num_tokens:
                    self.first_seconds = self.seconds

    def speed(self) -> str:
        """Returns a line for people on how long it was and how fast it came."""
        first = f"the first after {self.first_seconds:.2f} s, " if self.first_seconds is not None else ""
        return f"{self.num_tokens} tokens, {first}{self.tokens_per_second:.1f} tokens/s"
