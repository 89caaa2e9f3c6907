"""What the engine has produced for one request and its reader has not taken yet."""

from __future__ import annotations

import asyncio

from pipezoo_core.request import TextGenerationOutput

__all__ = ["Feed"]

_MAX_PIECES = 64  # of an answer, before they become one


class Feed:
    """Keeps outputs for a reader that may be slow, and never waits for it.

    What piles up is joined, so that it takes no more than the answers themselves.

    Args:
        num_answers: how many answers the request has.
        is_whole: whether its reader wants nothing before all of them have ended, or one has failed.

    Attributes:
        error: what the request failed of; None where it has not.
    """

    def __init__(self, num_answers: int, *, is_whole: bool = False) -> None:
        self._num_left = num_answers
        self._is_whole = is_whole
        self._pieces: dict[int, list[TextGenerationOutput]] = {}
        self._error: Exception | None = None  # that the reader is to get
        self.error: BaseException | None = None
        self._is_news = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether nothing will come any more and all was taken."""
        return self._num_left == 0 and not self._pieces and self._error is None

    @property
    def is_complete(self) -> bool:
        """Whether all answers have ended."""
        return self._num_left == 0

    def push(self, output: TextGenerationOutput) -> None:
        """Adds what a step produced."""
        pieces = self._pieces.setdefault(output.index, [])
        pieces.append(output)
        if len(pieces) > _MAX_PIECES:
            pieces[:] = [TextGenerationOutput.joined(pieces)]
        self._num_left -= output.is_done
        if output.error is not None:
            self.error = output.error
        if not self._is_whole or self._num_left == 0 or output.error is not None:
            self._is_news.set()

    def fail(self, error: Exception) -> None:
        """Ends the request; its reader gets the error behind what was there before."""
        self._num_left, self._error, self.error = 0, error, error
        self._is_news.set()

    async def take(self) -> list[TextGenerationOutput]:
        """Waits for something new and returns all of it, one output for each answer that went on.

        Raises:
            Exception: what the request failed of, when all that was there before is taken.
        """
        await self._is_news.wait()
        taken = [TextGenerationOutput.joined(pieces) for pieces in self._pieces.values()]
        self._pieces.clear()
        if taken:
            if self._error is None:
                self._is_news.clear()
            return taken
        error, self._error = self._error, None
        self._is_news.clear()
        assert error is not None, "there is news"
        raise error
