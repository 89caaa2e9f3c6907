"""Which pages are about to be computed, and for how many requests. Knows no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipezoo_core.paging.claim import Claim
from pipezoo_core.paging.prefix_cache import page_hash

__all__ = ["UpcomingPages"]


class UpcomingPages:
    """Counts, for the page that each request fills next, how many do so: all but one of them can wait for it.

    Where layers keep a state, it is the page behind which the request leaves a state for others.

    Args:
        page_size: tokens per page.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._num_requests: Counter[bytes] = Counter()

    def __len__(self) -> int:
        """How many pages are about to be computed."""
        return len(self._num_requests)

    def look_ahead(self, claim: Claim, tokens: Sequence[int], end: int) -> None:
        """Notes the pages after those of a claim that the prefix cache knows, up to an end, if all tokens are known."""
        self.forget(claim)
        first = claim.num_committed * self._page_size
        if not first < end <= len(tokens):
            return
        hash_ = claim.hashes[-1] if claim.hashes else claim.root
        for start in range(first, end, self._page_size):
            hash_ = page_hash(hash_, tokens[start : start + self._page_size])
            claim.upcoming.append(hash_)
        self._num_requests[hash_] += 1

    def forget(self, claim: Claim) -> None:
        """Forgets what was noted of a claim."""
        if claim.upcoming:
            last = claim.upcoming[-1]
            self._num_requests[last] -= 1
            if not self._num_requests[last]:
                del self._num_requests[last]
            claim.upcoming = []

    def is_shared(self, claim: Claim) -> bool:
        """Whether another request fills the same page next, or one of those before it."""
        if not claim.upcoming:
            return False
        *before, last = claim.upcoming
        return self._num_requests[last] > 1 or any(hash_ in self._num_requests for hash_ in before)
