"""Which pages are about to be computed, and for how many requests. Knows no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipezoo_core.paging.claim import Claim
from pipezoo_core.paging.prefix_cache import page_hash

__all__ = ["UpcomingPages"]


class UpcomingPages:
    """Counts, for the page that each request fills next, how many do so: all but one of them can wait for it.

    Where layers keep a state, it is the next page behind which the request leaves a state for others. One that has more
    of its way before it than that can wait for what another one leaves anywhere on it.

    Args:
        page_size: tokens per page.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._num_requests: Counter[bytes] = Counter()

    def __len__(self) -> int:
        """How many pages are about to be computed."""
        return len(self._num_requests)

    def look_ahead(self, claim: Claim, tokens: Sequence[int], due: int, last: int) -> None:
        """Notes the pages after those of a claim that the prefix cache knows, if all their tokens are known.

        Args:
            claim: of the request.
            tokens: of the request.
            due: the end of a page, behind which others can go on first.
            last: the end of a page, up to which the pages are noted.
        """
        self.forget(claim)
        first = claim.num_committed * self._page_size
        if not first < due <= last <= len(tokens):
            return
        hash_ = claim.hashes[-1] if claim.hashes else claim.root
        for start in range(first, last, self._page_size):
            hash_ = page_hash(hash_, tokens[start : start + self._page_size])
            claim.upcoming.append(hash_)
        claim.due = claim.upcoming[(due - first) // self._page_size - 1]
        self._num_requests[claim.due] += 1

    def forget(self, claim: Claim) -> None:
        """Forgets what was noted of a claim."""
        if claim.due is not None:
            self._num_requests[claim.due] -= 1
            if not self._num_requests[claim.due]:
                del self._num_requests[claim.due]
            claim.upcoming, claim.due = [], None

    def is_shared(self, claim: Claim) -> bool:
        """Whether what another request fills next is one of the pages on this one's way."""
        return any(self._num_requests[hash_] > (hash_ == claim.due) for hash_ in claim.upcoming)
