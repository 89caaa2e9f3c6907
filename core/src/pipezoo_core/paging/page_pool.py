"""Which pages are free, and how many owners each of the others has. Knows no torch, no tokens, no requests."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable

from pipezoo_core.errors import CacheIntegrityError

__all__ = ["PagePool"]


class PagePool:
    """Owns the reference counts of a fixed number of pages.

    A page is *empty*, *idle* (nobody refers to it, but its contents may be wanted again) or *referenced*. Empty pages
    are handed out lowest number first, which keeps the used ones close together in memory; when they run out, the
    idle page that was given back longest ago follows.
    """

    def __init__(self, num_pages: int) -> None:
        self._ref_counts = [0] * num_pages
        self._empty = list(range(num_pages))  # a heap
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_pages(self) -> int:
        """All pages."""
        return len(self._ref_counts)

    @property
    def num_free(self) -> int:
        """Pages that can be handed out: the empty and the idle ones."""
        return len(self._empty) + len(self._idle)

    def allocate(self, count: int) -> tuple[list[int], list[int]] | None:
        """Hands out `count` pages with one reference each.

        Returns:
            The pages, and those among them that were idle, so that their contents are gone now; None where fewer
            than `count` are free (nothing changes then).
        """
        if count > self.num_free:
            return None
        pages, evicted = [], []
        for _ in range(count):
            if self._empty:
                page = heapq.heappop(self._empty)
            else:
                page, _ = self._idle.popitem(last=False)
                evicted.append(page)
            self._ref_counts[page] = 1
            pages.append(page)
        return pages, evicted

    def retain(self, page: int) -> None:
        """Adds a reference to a page that is idle or referenced."""
        if self._ref_counts[page] == 0:
            del self._idle[page]
        self._ref_counts[page] += 1

    def release(self, page: int, *, keep: bool) -> None:
        """Takes a reference away; with the last one the page becomes idle (`keep`) or empty."""
        assert self._ref_counts[page] > 0, page
        self._ref_counts[page] -= 1
        if self._ref_counts[page] == 0:
            if keep:
                self._idle[page] = None
            else:
                heapq.heappush(self._empty, page)

    def drop_idle(self) -> None:
        """Makes all idle pages empty."""
        for page in self._idle:
            heapq.heappush(self._empty, page)
        self._idle.clear()

    def check_integrity(self, owned: Iterable[list[int]]) -> None:
        """Checks the books against the pages that each request says it owns.

        Raises:
            CacheIntegrityError: a page is lost, free twice, or has another number of owners than references.
        """
        counts = [0] * self.num_pages
        for pages in owned:
            if len(set(pages)) != len(pages):
                raise CacheIntegrityError("a request owns a page twice", found=pages)
            for page in pages:
                counts[page] += 1
        if counts != self._ref_counts:
            wrong = [f"{p}: {self._ref_counts[p]} != {n}" for p, n in enumerate(counts) if n != self._ref_counts[p]]
            raise CacheIntegrityError("reference counts differ from the pages in use", found=wrong)
        free = [*self._empty, *self._idle]
        if sorted(free) != [page for page, count in enumerate(counts) if count == 0]:
            raise CacheIntegrityError("free and referenced pages are not all pages", found=sorted(free))
