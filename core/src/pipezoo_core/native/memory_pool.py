"""Memory of a CPU that serves again when no tensor has it any more.

malloc would do, but not well for tensors: glibc before 2.38 does not find a freed piece again for one of the same size
that has to begin on a cache line, so that what is resident depends on how the pieces fall.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["HUGE_PAGE", "MemoryPool", "aligned", "aligned_bytes"]

HUGE_PAGE = 2 << 20
"""Bytes of the pages that `aligned_bytes` takes."""

_LINE = 64  # bytes of a line of the caches


class MemoryPool:
    """Makes tensors for one thread at a time. Any thread may let go of them.

    Whether somebody has a piece is looked up when one is wanted. Nothing is called when a tensor goes: an interrupt
    would be lost there.

    Args:
        exact: whether a piece serves only for as many bytes as it was made for.
    """

    def __init__(self, *, exact: bool = False) -> None:
        self._exact = exact
        self._pieces: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []  # each with what tensors have of it

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Returns a tensor without numbers that begins on a line of the caches.

        Its memory is the smallest free piece that is large enough. Where there is none, a new one takes the place of
        the largest; of none, if sizes have to be exact.
        """
        size = math.prod(shape) * dtype.itemsize
        free = [(len(piece), i) for i, (piece, lent) in enumerate(self._pieces) if lent() is None]
        fitting = [(length, i) for length, i in free if length == size or (length > size and not self._exact)]
        if fitting:
            piece, _ = self._pieces.pop(min(fitting)[1])
        else:
            if free and not self._exact:
                del self._pieces[max(free)[1]]
            piece = aligned_bytes(size)
        # By no operation of torch where numpy has the dtype: see `kv_cache.as_tensors`.
        lent = piece[:size].view(np.float32).reshape(shape) if dtype is torch.float32 else piece[:size]
        self._pieces.append((piece, weakref.ref(lent)))  # alive as long as any tensor has its memory
        tensor = torch.from_numpy(lent)
        return tensor if dtype is torch.float32 else tensor.view(dtype).view(shape)

    def let_go(self) -> None:
        """Gives free pieces back to the system."""
        self._pieces = [(piece, lent) for piece, lent in self._pieces if lent() is not None]


def aligned(offset: int) -> int:
    """Returns where the next line of the caches begins: at 64 for 1 to 64."""
    return -(-offset // _LINE) * _LINE


def aligned_bytes(size: int) -> np.ndarray:
    """Returns memory that begins on a line of the caches, from numpy: it asks the system for pages of 2 MiB."""
    piece = np.empty(size + _LINE, dtype=np.uint8)
    start = -piece.ctypes.data % _LINE
    return piece[start : start + size]
