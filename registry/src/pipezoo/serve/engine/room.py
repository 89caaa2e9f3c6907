"""How many answers may wait: those of all requests that were taken and are not over, from their first moment on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipezoo.serve.errors import QueueFullError
from pipezoo_core.errors import InvalidRequestError

__all__ = ["Room"]


class Room:
    """Counts places. A request has them while its prompt is made, while it waits, and while it is answered.

    Args:
        max_queue: places beside those of a full batch.

    Attributes:
        num_taken: places that requests have now.
    """

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self.num_taken = 0

    @contextmanager
    def places(self, count: int, *, max_batch_size: int) -> Iterator[None]:
        """Has so many places while the context lasts.

        Args:
            count: one for each answer.
            max_batch_size: answers of a full batch.

        Raises:
            InvalidRequestError: there will never be so many.
            QueueFullError: there are not so many now.
        """
        most = max_batch_size + self._max_queue
        if count > most:
            raise InvalidRequestError(
                "the request asks for more answers than may wait",
                found=count,
                allowed=f"at most {most}",
                cure="Ask for fewer at a time, or start the server with a larger --max-queue.",
            )
        if self.num_taken + count > most:
            raise QueueFullError(
                "too many requests wait",
                found=f"{self.num_taken} answers, and {count} more",
                allowed=f"at most {most}",
                cure="Try again later, or start the server with a larger --max-queue.",
            )
        self.num_taken += count
        try:
            yield
        finally:
            self.num_taken -= count
