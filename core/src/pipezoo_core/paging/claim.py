"""The pages of one request. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipezoo_core.paging.prefix_cache import PrefixCache, page_hash
from pipezoo_core.paging.window import first_visible

__all__ = ["NO_PAGE", "Claim"]

NO_PAGE = -1
"""In a request's list of pages: it fell behind the sliding window and was given back. Never read, never written."""


@dataclass(slots=True)
class Claim:
    """One request's pages.

    Attributes:
        root: what its hash chain starts from.
        pages: in the order of its tokens, `NO_PAGE` for those behind the sliding window.
        hashes: of its full pages.
        num_committed: how many of those the prefix cache was told of.
        num_expired: how many pages fell behind the sliding window and were given back.
        upcoming: hash of the page that it fills next with tokens that are known; None where there is none.
        is_counted: whether the metrics have it.
    """

    root: bytes
    pages: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    num_committed: int = 0
    num_expired: int = 0
    upcoming: bytes | None = None
    is_counted: bool = False

    @property
    def own_pages(self) -> list[int]:
        """The pages that it refers to."""
        return self.pages[self.num_expired :]

    def next_hash(self, tokens: Sequence[int]) -> bytes:
        """Returns the hash of the page after those of `hashes`, which holds these tokens."""
        return page_hash(self.hashes[-1] if self.hashes else self.root, tokens)

    def find_prefix(
        self, tokens: Sequence[int], cache: PrefixCache, *, page_size: int, sliding_window: int | None
    ) -> None:
        """Fills an empty claim with the known pages of the longest prefix that can be gone on from."""
        pages: list[int] = []
        num_found = 0  # in a row, up to here
        for end in range(page_size, len(tokens), page_size):
            self.hashes.append(self.next_hash(tokens[end - page_size : end]))
            page = cache.find(self.hashes[-1])
            if page is None and sliding_window is None:
                break
            pages.append(NO_PAGE if page is None else page)
            num_found = 0 if page is None else num_found + 1
            first = first_visible(end, sliding_window) // page_size
            if num_found >= len(pages) - first:
                self.num_committed, self.num_expired = len(pages), first
        self.pages = [NO_PAGE] * self.num_expired + pages[self.num_expired : self.num_committed]
        del self.hashes[self.num_committed :]
