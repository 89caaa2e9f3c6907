"""What one request has of the KV cache. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipezoo_core.paging.prefix_cache import page_hash

__all__ = ["NO_PAGE", "Claim", "Holding"]

NO_PAGE = -1
"""In a request's list of pages: no token sees it any more, and it was given back. Never read, never written."""


@dataclass(slots=True)
class Holding:
    """One request's pages in one group of layers.

    Attributes:
        pages: in the order of its tokens, `NO_PAGE` for those that expired.
        num_expired: how many pages no token sees any more.
    """

    pages: list[int] = field(default_factory=list)
    num_expired: int = 0

    @property
    def own_pages(self) -> list[int]:
        """The pages that the request refers to."""
        return self.pages[self.num_expired :]


@dataclass(slots=True)
class Claim:
    """One request's pages in all groups of layers.

    Attributes:
        root: what its hash chain starts from.
        holdings: one per group; each has as many pages.
        hashes: of its full pages.
        num_committed: how many of those the prefix caches were told of.
        upcoming: hash of the page that it fills next with tokens that are known; None where there is none.
        is_counted: whether the metrics have it.
    """

    root: bytes
    holdings: list[Holding]
    hashes: list[bytes] = field(default_factory=list)
    num_committed: int = 0
    upcoming: bytes | None = None
    is_counted: bool = False

    @property
    def num_pages(self) -> int:
        """How many pages of tokens it reaches, in every group."""
        return len(self.holdings[0].pages)

    def next_hash(self, tokens: Sequence[int]) -> bytes:
        """Returns the hash of the page after those of `hashes`, which holds these tokens."""
        return page_hash(self.hashes[-1] if self.hashes else self.root, tokens)
