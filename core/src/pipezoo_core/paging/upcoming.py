"""Which pages are about to be computed, and for how many requests. Knows no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipezoo_core.paging.claim import Claim

__all__ = ["UpcomingPages"]


class UpcomingPages:
    """Counts, for the page that each request fills next, how many do so: all but one of them can wait for it.

    Args:
        page_size: tokens per page.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._num_requests: Counter[bytes] = Counter()

    def __len__(self) -> int:
        """How many pages are about to be computed."""
        return len(self._num_requests)

    def look_ahead(self, claim: Claim, tokens: Sequence[int]) -> None:
        """Notes the page after those of a claim that the prefix cache knows, if all of its tokens are known."""
        self.forget(claim)
        start, end = (n * self._page_size for n in (claim.num_committed, claim.num_committed + 1))
        if end <= len(tokens):
            claim.upcoming = claim.next_hash(tokens[start:end])
            self._num_requests[claim.upcoming] += 1

    def forget(self, claim: Claim) -> None:
        """Forgets what was noted of a claim."""
        if claim.upcoming is not None:
            self._num_requests[claim.upcoming] -= 1
            if not self._num_requests[claim.upcoming]:
                del self._num_requests[claim.upcoming]
            claim.upcoming = None

    def is_shared(self, claim: Claim) -> bool:
        """Whether another request fills the same page next."""
        return claim.upcoming is not None and self._num_requests[claim.upcoming] > 1
