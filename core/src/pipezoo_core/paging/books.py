"""The pages of one group of layers: which are free, and which hold what. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipezoo_core.context import TextContext
from pipezoo_core.paging.claim import NO_PAGE, Claim, Holding
from pipezoo_core.paging.observer import PageObserver
from pipezoo_core.paging.page_pool import PagePool
from pipezoo_core.paging.prefix_cache import PrefixCache
from pipezoo_core.paging.state_books import StateBooks
from pipezoo_core.paging.window import first_visible

__all__ = ["GroupBooks", "known_prefix"]


class GroupBooks:
    """Owns the pages of the layers that keep and expire theirs alike; each request has a `Holding` in them.

    Args:
        number: of the group, which is that of its holding in every claim.
        num_pages: of the group.
        page_size: tokens per page.
        sliding_window: how many tokens a token sees in these layers; None for all.
        chunk: how many tokens make a chunk, of which a token sees its own; None for no chunks.

    Attributes:
        num_evicted: idle pages whose contents were given up for others.
        observer: is told which pages can be found; nobody at first.
    """

    def __init__(
        self, number: int, num_pages: int, *, page_size: int, sliding_window: int | None, chunk: int | None
    ) -> None:
        self.pool = PagePool(num_pages)
        self.num_evicted = 0
        self.observer: PageObserver | None = None
        self._number = number
        self._page_size = page_size
        self._sliding_window = sliding_window
        self._chunk = chunk
        self._prefix_cache = PrefixCache()

    @property
    def is_bounded(self) -> bool:
        """Whether pages expire, so that a request holds no more than so many."""
        return self._sliding_window is not None or self._chunk is not None

    def first_visible_page(self, position: int) -> int:
        """Returns the first of a request's pages that its token at this position sees, and no later token before it.

        With a window of 6 and pages of 4, the token at position 9 sees positions 4 to 9: pages 1 and 2.
        """
        return first_visible(position, self._sliding_window, self._chunk) // self._page_size

    def find(self, hash_: bytes) -> int | None:
        """Returns the page that is known to hold these tokens."""
        return self._prefix_cache.find(hash_)

    def retain(self, claim: Claim) -> None:
        """Adds a reference to the known pages that a new claim has found."""
        for page in self._holding(claim).own_pages:
            self.pool.retain(page)

    def extend(self, claim: Claim, count: int) -> None:
        """Gives a request `count` pages more, which must be free."""
        allocation = self.pool.allocate(count)
        assert allocation is not None, "pages are counted before they are taken"
        pages, evicted = allocation
        gone = self._prefix_cache.forget(evicted)
        if gone and self.observer is not None:
            self.observer.on_removed(self._number, gone)
        self.num_evicted += len(evicted)
        self._holding(claim).pages.extend(pages)

    def commit(self, claim: Claim, index: int, hash_: bytes, context: TextContext) -> None:
        """Notes that a request's page is full and can be shared."""
        is_new = self._prefix_cache.insert(hash_, self._holding(claim).pages[index])
        if is_new and self.observer is not None:
            self.observer.on_stored(self._number, claim, hash_, context)

    def free_expired(self, claim: Claim, position: int) -> None:
        """Takes back the pages that no token from this position on sees."""
        holding = self._holding(claim)
        first = self.first_visible_page(position)
        for index in range(holding.num_expired, first):
            self._release(holding.pages[index])
            holding.pages[index] = NO_PAGE
        holding.num_expired = first

    def shrink(self, claim: Claim, count: int) -> None:
        """Takes back a request's pages behind its first `count`, which nobody else has."""
        holding = self._holding(claim)
        for page in holding.pages[count:]:
            self._release(page)
        del holding.pages[count:]

    def release(self, claim: Claim) -> None:
        """Takes a request's pages back."""
        for page in reversed(self._holding(claim).own_pages):  # a prefix's end is of less use: it is evicted first
            self._release(page)

    def forget_prefixes(self) -> None:
        """Forgets what pages hold; those that nobody refers to become empty."""
        self._prefix_cache.clear()
        self.pool.drop_idle()
        if self.observer is not None:
            self.observer.on_cleared()

    def check_integrity(self, claims: Iterable[Claim]) -> None:
        """Checks that free and referenced pages are all pages and that every owner is counted.

        Raises:
            CacheIntegrityError: they are not.
        """
        self.pool.check_integrity(self._holding(claim).own_pages for claim in claims)

    def _holding(self, claim: Claim) -> Holding:
        return claim.holdings[self._number]

    def _release(self, page: int) -> None:
        self.pool.release(page, keep=page in self._prefix_cache)


def known_prefix(
    claim: Claim, tokens: Sequence[int], books: Sequence[GroupBooks], page_size: int, states: StateBooks | None = None
) -> None:
    """Fills an empty claim with the known pages of the longest prefix that every group can go on from.

    A group that sees all can go on from every end before its first unknown page, one with a window from every end
    whose visible pages it knows, whatever came before. With pages of 4 tokens, of which the first knows 0 to 2, and the
    second, with a window of 5, knows 1 and 3: both can go on from the end of page 1, where the window begins with it.

    Layers with a state can go on where there is a snapshot of it. The pages' end, if it is behind that, is where the
    request parts from others.
    """
    pages: list[list[int]] = [[] for _ in books]
    in_a_row = [0] * len(books)  # known pages up to here
    best = pages_end = 0
    for end in range(page_size, len(tokens), page_size):
        claim.hashes.append(claim.next_hash(tokens[end - page_size : end]))
        found = [group.find(claim.hashes[-1]) for group in books]
        if any(page is None and not group.is_bounded for page, group in zip(found, books, strict=True)):
            break
        for number, page in enumerate(found):
            pages[number].append(NO_PAGE if page is None else page)
            in_a_row[number] = 0 if page is None else in_a_row[number] + 1
        num_pages = len(pages[0])
        visible = [num_pages - group.first_visible_page(end) for group in books]
        if all(count >= wanted for count, wanted in zip(in_a_row, visible, strict=True)):
            pages_end = num_pages
            if states is None or states.find(claim.hashes[-1]) is not None:
                best = num_pages
    del claim.hashes[best:]
    if states is not None and pages_end > best:
        claim.parting = pages_end * page_size
    if states is not None and best:
        states.go_on(claim)
    claim.num_committed = best
    for holding, known, group in zip(claim.holdings, pages, books, strict=True):
        holding.num_expired = group.first_visible_page(best * page_size)
        holding.pages = [NO_PAGE] * holding.num_expired + known[holding.num_expired : best]
