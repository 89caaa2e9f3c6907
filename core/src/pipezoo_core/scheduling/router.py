"""Which replica of a model a request goes to. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipezoo_core.context import TextContext

if TYPE_CHECKING:
    from pipezoo_core.kv_cache import PagedKVCacheManager

__all__ = ["get_or_recommend_replica"]


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
