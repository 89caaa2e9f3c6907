"""The pages of one request. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipezoo_core.kv_cache.prefix_cache import page_hash

__all__ = ["Claim"]


@dataclass(slots=True)
class Claim:
    """One request's pages.

    Attributes:
        root: what its hash chain starts from.
        pages: in the order of its tokens, `NO_PAGE` for those behind the sliding window.
        hashes: of its full pages.
        num_committed: how many of those the prefix cache was told of.
        num_hidden: how many pages fell behind the sliding window.
        upcoming: hash of the page that it fills next with tokens that are known; None where there is none.
        is_counted: whether the metrics have it.
    """

    root: bytes
    pages: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    num_committed: int = 0
    num_hidden: int = 0
    upcoming: bytes | None = None
    is_counted: bool = False

    @property
    def own_pages(self) -> list[int]:
        """The pages that it refers to."""
        return self.pages[self.num_hidden :]

    def next_hash(self, tokens: Sequence[int]) -> bytes:
        """Returns the hash of the page after those of `hashes`, which holds these tokens."""
        return page_hash(self.hashes[-1] if self.hashes else self.root, tokens)
