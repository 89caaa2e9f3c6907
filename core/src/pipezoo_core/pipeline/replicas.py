"""Several replicas of a model at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

__all__ = ["ReplicaThreads"]

T = TypeVar("T")


class ReplicaThreads:
    """Does something for several replicas at the same time: for one in the caller's thread, for each other in its own.

    Args:
        num_replicas: at least two.
    """

    def __init__(self, num_replicas: int) -> None:
        self._of_thread = threading.local()
        self._threads = ThreadPoolExecutor(
            max_workers=num_replicas - 1,
            thread_name_prefix="pipezoo-replica",
            initializer=partial(setattr, self._of_thread, "is_replica", True),
        )

    @property
    def is_here(self) -> bool:
        """Whether the caller's thread is one of these."""
        return hasattr(self._of_thread, "is_replica")

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown()

    def map(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Makes all calls, no more than there are replicas, and returns their results. They must not raise."""
        futures: list[Future[T]] = []
        first: list[T] = []
        try:
            futures.extend(self._threads.submit(call) for call in calls[1:])
            first.extend(call() for call in calls[:1])
        finally:
            _join(futures)
        return [*first, *(future.result() for future in futures)]


def _join(futures: Collection[Future[T]]) -> None:
    """Waits until the replicas' threads are through, whatever comes in between: their pages are in use until then."""
    try:
        wait(futures)
    except BaseException:
        _join(futures)
        raise
