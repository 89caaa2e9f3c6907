"""What somebody is told of pages whose contents can be found, and can no more: a router of requests, in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pipezoo_core.context import TextContext
from pipezoo_core.paging.claim import Claim

__all__ = ["PageObserver"]


class PageObserver(Protocol):
    """Is told at once, between two steps, so that it has to be quick."""

    def on_stored(self, group: int, claim: Claim, hash_: bytes, context: TextContext) -> None:
        """A page of a group of layers can be found by this hash: the one behind those of the claim's `hashes`."""

    def on_removed(self, group: int, hashes: Sequence[bytes]) -> None:
        """The pages with these hashes cannot be found any more."""

    def on_cleared(self) -> None:
        """No page of a group can be found any more."""
