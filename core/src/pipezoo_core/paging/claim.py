"""What one request has of the KV cache. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipezoo_core.paging.prefix_cache import page_hash

__all__ = ["NO_PAGE", "NO_SLOT", "Claim", "Holding", "StateHolding"]

NO_PAGE = -1
"""In a request's list of pages: no token sees it any more, and it was given back. Never read, never written."""

NO_SLOT = -1
"""In place of a slot that holds a state: there is none. One that is read so is zeros."""


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
class StateHolding:
    """One request's slots in the layers that keep a state.

    Attributes:
        read: where the state is that its next step starts from; `NO_SLOT` before the first.
        write: where the next step leaves it; `NO_SLOT` until that is reserved. The same, unless others may read there.
        passing: hash of the last page that decoding has filled, if the request has left its snapshot.
        is_in_step: whether a step may have begun to write there, and has not come to its end.
    """

    read: int = NO_SLOT
    write: int = NO_SLOT
    passing: bytes | None = None
    is_in_step: bool = False

    @property
    def own_slots(self) -> list[int]:
        """The slots that the request refers to."""
        return [*{self.read, self.write} - {NO_SLOT}]


@dataclass(slots=True)
class Claim:
    """One request's pages in all groups of layers, and its slots where layers keep a state.

    Attributes:
        root: what its hash chain starts from.
        holdings: one per group; each has as many pages.
        state: its slots; without layers that keep a state, none.
        hashes: of its full pages.
        num_committed: how many of those the prefix caches were told of.
        parting: up to which token others' pages are known, though no state is; 0 for none.
        upcoming: hashes of the pages that it fills next with tokens that are known, up to the last end that others can
            go on from.
        due: that of them behind which others can go on first.
        is_counted: whether the metrics have it.
    """

    root: bytes
    holdings: list[Holding]
    state: StateHolding = field(default_factory=StateHolding)
    hashes: list[bytes] = field(default_factory=list)
    num_committed: int = 0
    parting: int = 0
    upcoming: list[bytes] = field(default_factory=list)
    due: bytes | None = None
    is_counted: bool = False

    @property
    def num_pages(self) -> int:
        """How many pages of tokens it reaches, in every group."""
        return len(self.holdings[0].pages)

    def next_hash(self, tokens: Sequence[int]) -> bytes:
        """Returns the hash of the page after those of `hashes`, which holds these tokens."""
        return page_hash(self.hashes[-1] if self.hashes else self.root, tokens)
