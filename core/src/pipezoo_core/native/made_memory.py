"""The memory of the tensors that a step makes, found by addresses."""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["MadeMemory"]


class MadeMemory:
    """Numbers the tensors that are made while a step is recorded.

    A tensor's memory may be used again for a later one, so that an address alone does not tell which one is meant:
    each gets a number when it is made, and an address means the last one made there.

    Attributes:
        sizes: of the tensors, in bytes.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._starts: list[int] = []  # of the tensors that lie there now, in the order of their addresses
        # their ends and numbers, and whether they are still there
        self._made: list[tuple[int, int, StorageWeakRef]] = []

    def add(self, storage: torch.UntypedStorage) -> None:
        """Notes a tensor's memory."""
        at = self.forget(storage)
        start, size = storage.data_ptr(), storage.nbytes()
        self._starts.insert(at, start)
        self._made.insert(at, (start + size, len(self.sizes), StorageWeakRef(storage)))
        self.sizes.append(size)

    def forget(self, storage: torch.UntypedStorage) -> int:
        """Forgets what lay where something else lies now; returns where that would be in the order."""
        start, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        at = bisect_right(self._starts, start)
        first = at - 1 if at and self._made[at - 1][0] > start else at
        last = first
        while last < len(self._starts) and self._starts[last] < end:  # these are gone: the memory is used again
            last += 1
        del self._starts[first:last], self._made[first:last]
        return first

    def find(self, address: int) -> tuple[int, int] | None:
        """Returns the number of the tensor that an address is in, and how many bytes into it."""
        at = self._at(address)
        return None if at is None else (self._made[at][1], address - self._starts[at])

    def find_in(self, storage: torch.UntypedStorage) -> tuple[int, int] | None:
        """Returns the same for the beginning of memory that is there; None for what was made elsewhere.

        numpy, say, makes tensors that torch's dispatcher does not see, where others have been that it saw.
        """
        start = storage.data_ptr()
        at = self._at(start)
        return None if at is None or self._made[at][2].expired() else (self._made[at][1], start - self._starts[at])

    def _at(self, address: int) -> int | None:
        at = bisect_right(self._starts, address) - 1
        return None if at < 0 or address >= self._made[at][0] else at
