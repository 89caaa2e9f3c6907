"""A lock that knows which process it belongs to. Knows no torch."""

from __future__ import annotations

import os
import threading
from types import TracebackType

from pipezoo_core.errors import ForkedProcessError

__all__ = ["ProcessLock"]


class ProcessLock:
    """A reentrant lock that only the process which made it can take.

    A forked child has none of its parent's threads. A lock that one of them held stays locked there, and work that is
    handed to one of them is never done. So whatever needs the lock says at once that it cannot be done.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process_id = os.getpid()

    def check(self) -> None:
        """Does nothing in the process that made the lock.

        Raises:
            ForkedProcessError: this is a forked child of it.
        """
        if not self.is_here:
            raise ForkedProcessError(
                "the model was loaded in another process, and a forked child cannot use it",
                found=f"process {os.getpid()}, forked after process {self._process_id} had loaded it",
                cure="Load the model in the child, and start the child with multiprocessing's 'spawn' method, "
                "because a forked child has none of its parent's threads.",
            )

    @property
    def is_here(self) -> bool:
        """Whether this is the process that made the lock."""
        return os.getpid() == self._process_id

    def acquire_at_once(self) -> bool:
        """Takes the lock if nobody else has it; never in a forked child."""
        return self.is_here and self._lock.acquire(blocking=False)

    def release(self) -> None:
        """Gives back what `acquire_at_once` took."""
        self._lock.release()

    def __enter__(self) -> None:
        self.check()
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()
