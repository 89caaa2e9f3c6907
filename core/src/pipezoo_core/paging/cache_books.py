"""The books of all layers: of the groups that have pages, and of those that keep a state. Knows no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from pipezoo_core.context import TextContext
from pipezoo_core.paging.books import GroupBooks, known_prefix
from pipezoo_core.paging.claim import NO_SLOT, Claim, Holding
from pipezoo_core.paging.observer import PageObserver
from pipezoo_core.paging.state_books import StateBooks
from pipezoo_core.paging.upcoming import UpcomingPages

__all__ = ["CacheBooks"]


class CacheBooks:
    """Owns what a request has: pages in every group and, where layers keep a state, a slot. It gets all, or none.

    Args:
        groups: the books of each group of layers with pages.
        states: those of the layers that keep a state; None where none does.
        page_size: tokens per page.

    Attributes:
        groups: as given.
        states: as given.
        upcoming: what requests are about to compute that others can go on from.
    """

    def __init__(self, groups: Sequence[GroupBooks], states: StateBooks | None, page_size: int) -> None:
        self.groups = tuple(groups)
        self.states = states
        self.upcoming = UpcomingPages(page_size)
        self._all: list[GroupBooks | StateBooks] = [*groups, *([] if states is None else [states])]
        self._page_size = page_size

    @property
    def num_free_pages(self) -> int:
        """Pages no request refers to, those kept for their prefix included."""
        return sum(group.pool.num_free for group in self.groups)

    @property
    def used_pages_pct(self) -> float:
        """Share of the pages that requests refer to, in percent; of the group with the greatest share."""
        return max(100.0 * (1 - group.pool.num_free / group.pool.num_pages) for group in self.groups)

    @property
    def free_room(self) -> str:
        """Free pages and all pages of each group, and slots for states, for messages."""
        free = [f"{books.pool.num_free} free of {books.pool.num_pages}" for books in self._all]
        slots = [] if self.states is None else [f"slots for states: {free.pop()}"]
        return "; ".join([f"pages: {', '.join(free)}", *slots])

    @property
    def num_evicted(self) -> int:
        """Idle pages whose contents were given up for others."""
        return sum(group.num_evicted for group in self.groups)

    def new_claim(self, root: bytes) -> Claim:
        """Returns a claim to nothing."""
        return Claim(root, [Holding() for _ in self.groups])

    def find_prefix(self, claim: Claim, tokens: Sequence[int]) -> None:
        """Fills an empty claim with what is known of a request's first tokens, without a reference to it."""
        known_prefix(claim, tokens, self.groups, self._page_size, self.states)

    def retain(self, claim: Claim) -> None:
        """Adds references to what a new claim has found."""
        for books in self._all:
            books.retain(claim)

    def look_ahead(self, claim: Claim, context: TextContext) -> None:
        """Notes up to where others can soon go on from what a request computes."""
        num_tokens = len(context.tokens)
        if self.states is None:
            due = last = (claim.num_committed + 1) * self._page_size
        else:
            due = self.states.next_end(claim, context.cache_length, num_tokens)
            last = self.states.last_end(num_tokens)
        self.upcoming.look_ahead(claim, context.tokens, due, last)

    def most_at_once(self, claim: Claim, context: TextContext) -> int:
        """Returns how many tokens a request's next chunk may have: to where its state is to become a snapshot."""
        if self.states is None:
            return sys.maxsize
        end = self.states.next_end(claim, context.cache_length, len(context.tokens))
        return end - context.cache_length if end else sys.maxsize

    def reserve(self, claim: Claim, count: int) -> bool:
        """Gives a request `count` pages more of each group, where that is above 0, and a slot to write to.

        Returns:
            False where too few are free; the request keeps what it has.
        """
        if self.states is not None and not self.states.can_reserve(claim):
            return False
        if count > 0:
            if any(group.pool.num_free < count for group in self.groups):
                return False
            for group in self.groups:
                group.extend(claim, count)
        if self.states is not None:
            self.states.reserve(claim)
        return True

    def has_slot(self, claim: Claim) -> bool:
        """Whether a request has the slot that its next step writes to, if it needs one."""
        return self.states is None or claim.state.write != NO_SLOT

    def begin_step(self, claims: Sequence[Claim]) -> tuple[list[int], list[int]]:
        """Notes that a step is about to write these requests' states; returns their slots to read and to write."""
        if self.states is None:
            return [], []
        for claim in claims:
            self.states.begin_step(claim)
        return [claim.state.read for claim in claims], [claim.state.write for claim in claims]

    def step(self, claim: Claim, context: TextContext, *, is_shared: bool) -> None:
        """Notes what a step wrote of a request: what is full can be shared, if it may, and what expired is free."""
        if self.states is not None:
            self.states.step(claim)
        if is_shared:
            self._commit(claim, context)
        for group in self.groups:
            if group.is_bounded:
                group.free_expired(claim, context.cache_length)

    def _commit(self, claim: Claim, context: TextContext) -> None:
        page_size, before, fed = self._page_size, claim.num_committed, context.cache_length
        while (end := (claim.num_committed + 1) * page_size) <= fed:
            hash_ = claim.next_hash(context.tokens[end - page_size : end])
            for group in self.groups:
                group.commit(claim, claim.num_committed, hash_, context)
            claim.hashes.append(hash_)
            claim.num_committed += 1
        if self.states is not None and self.states.next_end(claim, fed - 1, len(context.tokens)) == fed:
            self.states.keep(claim, claim.hashes[-1], is_passing=fed >= context.prompt_length)
        if claim.num_committed > before or (not claim.upcoming and end <= len(context.tokens)):
            self.look_ahead(claim, context)

    def shrink(self, claim: Claim, count: int) -> None:
        """Takes back a request's pages behind its first `count`, which nobody else has."""
        for group in self.groups:
            group.shrink(claim, count)

    def release(self, claim: Claim) -> None:
        """Takes back all that a request has."""
        self.upcoming.forget(claim)
        for books in self._all:
            books.release(claim)

    def observe(self, observer: PageObserver) -> None:
        """Has somebody told which pages can be found, from now on."""
        for group in self.groups:
            group.observer = observer

    def forget_prefixes(self) -> None:
        """Forgets what pages and slots hold; those that nobody refers to become empty."""
        for books in self._all:
            books.forget_prefixes()

    def check_integrity(self, claims: Iterable[Claim]) -> None:
        """Checks that free and referenced pages and slots are all there are and that every owner is counted.

        Raises:
            CacheIntegrityError: they are not.
        """
        claims = [*claims]
        for books in self._all:
            books.check_integrity(claims)
