"""One answer of a model while it comes: its text so far, why it ended, and how long it took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

from pipezoo_core.request import Prompt, TextGenerationOutput

if TYPE_CHECKING:
    from pipezoo_core.pipeline import TextGenerationPipeline

__all__ = ["Answer"]


class Answer:
    """What a model has answered so far. When something ends it early, what there is of it stays.

    Attributes:
        text: as far as it has come.
        num_tokens: generated so far, an end token included; of a server's answer 0 until its end, when the server says.
        seconds: from the request to the latest token.
        first_seconds: from the request to the first token, which is when the prompt is through; None before.
        last: the last piece of it, with what it took; None until it has ended by itself.
    """

    def __init__(self) -> None:
        self.text = ""
        self.num_tokens = 0
        self._begin = 0.0
        self.seconds = 0.0
        self.first_seconds: float | None = None
        self.last: TextGenerationOutput | None = None

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

    def follow(self, pieces: Generator[TextGenerationOutput], show: Callable[[str], None]) -> None:
        """Takes an answer that comes from elsewhere, and shows each piece of text when it is there.

        Raises:
            What `pieces` does, which is closed then, and what `show` does.
        """
        self._begin = time.perf_counter()
        with closing(pieces):
            for piece in pieces:
                self._take(piece)
                show(piece.text)

    async def _stream(
        self, llm: TextGenerationPipeline, prompt: Prompt, show: Callable[[str], None], sampling: dict[str, Any]
    ) -> None:
        self._begin = time.perf_counter()
        async with aclosing(llm.generate_async(prompt, **sampling)) as steps:
            async for outputs in steps:
                for output in outputs:
                    if output.index == 0:  # of several answers the first one
                        self._take(output)
                        show(output.text)

    def _take(self, piece: TextGenerationOutput) -> None:
        self.seconds = time.perf_counter() - self._begin
        self.text += piece.text
        self.num_tokens += len(piece.tokens)
        if piece.usage is not None:
            self.num_tokens = piece.usage.num_generated_tokens
        self.last = piece if piece.is_done else None
        if self.first_seconds is None and (self.num_tokens or self.text):
            self.first_seconds = self.seconds

    def speed(self) -> str:
        """Returns a line for people on how long it was and how fast it came."""
        first = f"the first after {self.first_seconds:.2f} s" if self.first_seconds is not None else None
        is_counted = self.num_tokens or not self.text
        count, rate = (
            (f"{self.num_tokens} tokens", f"{self.tokens_per_second:.1f} tokens/s") if is_counted else (None, None)
        )
        return ", ".join(filter(None, (count, first, rate)))
