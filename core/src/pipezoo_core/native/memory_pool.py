"""Memory of a CPU that serves again when no tensor has it any more.

malloc would do, but not well for tensors: glibc before 2.38 does not find a freed piece again for one of the same size
that has to begin on a cache line, so that what is resident depends on how the pieces fall.
"""

from __future__ import annotations

import math
import weakref
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["MemoryPool"]

_LINE = 64  # bytes of a line of the caches


class MemoryPool:
    """Makes tensors for one thread at a time. Any thread may let go of them.

    Args:
        exact: whether a piece serves only for as many bytes as it was made for.
    """

    def __init__(self, *, exact: bool = False) -> None:
        self._exact = exact
        self._free: list[np.ndarray] = []  # from the smallest to the largest
        self._returned: deque[np.ndarray] = deque()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Returns a tensor without numbers that begins on a line of the caches.

        Its memory is the smallest free piece that is large enough. Where there is none, a new one takes the place of
        the largest, which is too small.
        """
        size = math.prod(shape) * dtype.itemsize
        while self._returned:
            insort(self._free, self._returned.popleft(), key=len)
        place = bisect_left(self._free, size, key=len)
        if place < len(self._free) and not (self._exact and len(self._free[place]) > size):
            piece = self._free.pop(place)
        else:
            if self._free and not self._exact:
                self._free.pop()
            piece = _aligned(size)
        lent = piece[:size]  # alive as long as any tensor has its memory
        weakref.finalize(lent, _give_back, weakref.ref(self), piece).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)

    def give_back(self, piece: np.ndarray) -> None:
        """Takes a piece that no tensor has any more."""
        self._returned.append(piece)

    def let_go(self) -> None:
        """Gives free pieces back to the system."""
        self._returned.clear()
        self._free.clear()


def _aligned(size: int) -> np.ndarray:
    """Returns bytes from numpy, which asks the system for pages of 2 MiB where there are many."""
    piece = np.empty(size + _LINE, dtype=np.uint8)
    start = -piece.ctypes.data % _LINE
    return piece[start : start + size]


def _give_back(pool: weakref.ref[MemoryPool], piece: np.ndarray) -> None:
    if (alive := pool()) is not None:
        alive.give_back(piece)
