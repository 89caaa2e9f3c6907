"""The slots of the layers that keep a state: which are free, and which hold what. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable

from pipezoo_core.paging.claim import NO_SLOT, Claim, StateHolding
from pipezoo_core.paging.page_pool import PagePool
from pipezoo_core.paging.prefix_cache import PrefixCache

__all__ = ["StateBooks"]


class StateBooks:
    """Owns the slots; a slot is to them what a page is to `GroupBooks`, and each request has a `StateHolding` in them.

    A state cannot be gone back in. Others share a prefix by a *snapshot*: a slot with the state at the end of a page,
    known by the hash of that page. Nothing is copied for it: what a request has written becomes the snapshot, its next
    step reads it there, and writes to another slot. With pages of 4 tokens, a request of 9 is fed 8 and then 1:

        step   read  write  afterwards
        1      -     0      slot 0 is a snapshot, after 8 tokens
        2      0     1      slot 0 is idle: whoever begins with these tokens goes on from it
        3      1     1

    Args:
        num_slots: of all requests and snapshots.
        page_size: tokens per page.
    """

    def __init__(self, num_slots: int, page_size: int) -> None:
        self.pool = PagePool(num_slots)
        self._page_size = page_size
        self._snapshots = PrefixCache()
        self._wanted: set[int] = set()  # snapshots that somebody has gone on from

    def find(self, hash_: bytes) -> int | None:
        """Returns the slot that is known to hold the state after the page with this hash."""
        return self._snapshots.find(hash_)

    def next_end(self, claim: Claim, num_fed: int, num_tokens: int) -> int:
        """Returns behind which token a request's next snapshot is due; 0 where none is, as far as its tokens are known.

        It is due at the last page's end that leaves a token to feed, and before it where the request parts from others.
        With pages of 4, a request of 11 tokens has one at 8; if it shares 5 of these with an earlier one, at 4, too.

        Args:
            claim: of the request.
            num_fed: tokens that its state has seen.
            num_tokens: that it has.
        """
        ends = claim.parting, self.last_end(num_tokens)
        return min((end for end in ends if end > num_fed), default=0)

    def last_end(self, num_tokens: int) -> int:
        """Returns behind which token of so many the last snapshot is due."""
        return (num_tokens - 1) // self._page_size * self._page_size

    def go_on(self, claim: Claim) -> None:
        """Lets a new claim read the snapshot at the end of its pages, without a reference to it."""
        slot = self.find(claim.hashes[-1])
        assert slot is not None, "the prefix has a snapshot"
        claim.state.read = slot

    def retain(self, claim: Claim) -> None:
        """Adds a reference to the snapshot that a new claim has found."""
        for slot in claim.state.own_slots:
            self.pool.retain(slot)
            self._wanted.add(slot)

    def can_reserve(self, claim: Claim) -> bool:
        """Whether the request has a slot to write to, or can get one."""
        return claim.state.write != NO_SLOT or self.pool.num_free > 0

    def reserve(self, claim: Claim) -> None:
        """Sees to it that the request has a slot to write to."""
        if claim.state.write != NO_SLOT:
            return
        allocation = self.pool.allocate(1)
        assert allocation is not None, "slots are counted before they are taken"
        (claim.state.write,), evicted = allocation
        self._forget(evicted)

    def begin_step(self, claim: Claim) -> None:
        """Notes that a step is about to write the request's state."""
        claim.state.is_in_step = True

    def step(self, claim: Claim) -> None:
        """Notes that the request's step is done: what it has written is its state from now on."""
        state = claim.state
        state.is_in_step = False
        if state.read not in (NO_SLOT, state.write):
            self._release(state.read)
        state.read = state.write

    def keep(self, claim: Claim, hash_: bytes, *, is_passing: bool) -> None:
        """Makes the request's state the snapshot that has this hash, if there is none.

        The request has another slot to write to then. Where none is free it goes on in its own, and there is no
        snapshot: what was reserved for several steps holds for all of them.

        Args:
            claim: of the request.
            hash_: of its last page.
            is_passing: whether it is of use until the request's next one alone, since it is the latest that a chat goes
                on from. If nobody has gone on from it by then it is given up, and not what others have left.
        """
        known = self.find(hash_)
        if known is not None:
            self.pool.retain(known)
            self._release(known)  # it is the last to be given up now
        elif self.pool.num_free > 0:
            self._snapshots.insert(hash_, claim.state.read)
            claim.state.write = NO_SLOT
            if is_passing:
                self._give_up(claim.state.passing)
                claim.state.passing = hash_
            self.reserve(claim)

    def release(self, claim: Claim) -> None:
        """Takes a request's slots back."""
        for slot in claim.state.own_slots:
            self._release(slot)
        claim.state = StateHolding()

    def forget_prefixes(self) -> None:
        """Forgets all snapshots; slots that nobody refers to become empty."""
        self._snapshots.clear()
        self._wanted.clear()
        self.pool.drop_idle()

    def check_integrity(self, claims: Iterable[Claim]) -> None:
        """Checks that free and referenced slots are all slots and that every owner is counted.

        Raises:
            CacheIntegrityError: they are not.
        """
        self.pool.check_integrity(claim.state.own_slots for claim in claims)

    def _give_up(self, hash_: bytes | None) -> None:
        slot = None if hash_ is None else self.find(hash_)
        if slot is not None and slot not in self._wanted:
            self.pool.retain(slot)
            self._forget([slot])
            self._release(slot)

    def _forget(self, slots: Iterable[int]) -> None:
        self._snapshots.forget(slots)
        self._wanted.difference_update(slots)

    def _release(self, slot: int) -> None:
        self.pool.release(slot, keep=slot in self._snapshots)
