"""Several replicas of a model: where a request goes, and their batches at the same time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from pipezoo_core.context import TextContext
from pipezoo_core.kv_cache import PagedKVCacheManager

__all__ = ["ReplicaThreads", "get_or_recommend_replica"]

T = TypeVar("T")


def get_or_recommend_replica(managers: Sequence[PagedKVCacheManager], context: TextContext) -> int:
    """Returns the number of the replica that serves the request, or else of the one that should.

    That is the one whose prefix cache holds most of the request's tokens, then the one with the fewest requests. A
    replica with more than twice the requests of another, and one, is passed over, however much it holds: else all
    requests that begin alike would go to one place.

    Args:
        managers: of the replicas' KV caches, in the replicas' order.
        context: the request.
    """
    for number, manager in enumerate(managers):
        if manager.contains(context.request_id):
            return number
    loads = [manager.num_requests for manager in managers]
    limit = 2 * min(loads) + 1
    candidates = [number for number, load in enumerate(loads) if load <= limit]
    if len(candidates) == 1:
        return candidates[0]
    return max(candidates, key=lambda number: (managers[number].num_known_pages(context), -loads[number]))


class ReplicaThreads:
    """Does something for several replicas at the same time: for one in the caller's thread, for each other in its own.

    Args:
        num_replicas: at least two.
    """

    def __init__(self, num_replicas: int) -> None:
        self._threads = ThreadPoolExecutor(max_workers=num_replicas - 1, thread_name_prefix="pipezoo-replica")

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
