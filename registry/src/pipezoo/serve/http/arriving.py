"""How many bodies of requests may arrive at the same time, and how much of them may be there."""

from __future__ import annotations

import time

from pipezoo.serve.errors import TooManyBodiesError

__all__ = ["ArrivingBodies", "ArrivingBody"]

_CURE = "Try again later."


class ArrivingBodies:
    """Counts the bodies of requests that have begun to arrive, and are not complete.

    Args:
        max_number: most of them.
        max_size: most bytes of all of them.

    Attributes:
        number: how many there are now.
        size: how many bytes of them are there.
    """

    def __init__(self, max_number: int, max_size: int) -> None:
        self._max_number = max_number
        self._max_size = max_size
        self.number = 0
        self.size = 0

    def one_more(self) -> ArrivingBody:
        """Counts a body until `complete` is called, which whoever asked sees to.

        Raises:
            TooManyBodiesError: there are as many as may be.
        """
        if self.number >= self._max_number:
            raise TooManyBodiesError(
                "too many bodies of requests are arriving", found=self.number, allowed="no further one", cure=_CURE
            )
        self.number += 1
        return ArrivingBody(self)

    def grow(self, size: int) -> None:
        """Counts bytes that have come.

        Raises:
            TooManyBodiesError: they are too many.
        """
        self.size += size
        if self.size > self._max_size:
            raise TooManyBodiesError(
                "the bodies of requests that are arriving are too large together",
                found=f"{self.size} bytes",
                allowed=f"at most {self._max_size}",
                cure=_CURE,
            )


class ArrivingBody:
    """One of them.

    Args:
        bodies: all of them.

    Attributes:
        begin: when it began to arrive, by `time.monotonic`.
        size: bytes that are there.
        is_complete: whether all are.
    """

    def __init__(self, bodies: ArrivingBodies) -> None:
        self._bodies = bodies
        self.begin = time.monotonic()
        self.is_complete = False
        self.size = 0

    def grow(self, size: int) -> None:
        """Counts bytes that have come before it is complete.

        Raises:
            TooManyBodiesError: those of all bodies are too many.
        """
        self.size += size
        self._bodies.grow(size)

    def complete(self) -> None:
        """Counts the body no more; it arrives no longer."""
        if not self.is_complete:
            self.is_complete = True
            self._bodies.number -= 1
            self._bodies.size -= self.size
