"""Weights of 8-bit floats, e4m3, with a scale for all of a tensor, for each row, or for so many columns of a row.

Here they become rows of blocks, which ranks can divide and the kernels pack. A block is a scale in float32, and its
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipezoo_core.layers.stored import StoredType
from pipezoo_core.native import SPAN
from pipezoo_core.weights.base import LazyTensor, StoredTensor

__all__ = ["E4M3", "E4M3Weight", "e4m3_type"]

E4M3 = torch.float8_e4m3fn
_HEAD = 4  # bytes of a block before its numbers
_BLOCKS = (SPAN, 64, 32)  # numbers that a block may have


def e4m3_type(in_features: int, span: int) -> StoredType | None:
    """Returns the type of blocks for a weight; None where there is none.

    The kernels have a scale for `SPAN` columns of a row. So all blocks within these have one: they are smaller only
    where a row has one scale.

    Args:
        in_features: of the weight.
        span: columns that share a scale.
    """
    sizes = _BLOCKS if span >= in_features else _BLOCKS[:1] if span % SPAN == 0 else ()
    block = next((size for size in sizes if in_features % size == 0), None)
    if block is None:
        return None
    return StoredType("FP8", block, _HEAD + block, partial(_of_blocks, block=block), blocks=f"e4m3_{block}")


@dataclass(frozen=True, slots=True, kw_only=True)
class E4M3Weight:
    """A weight of 8-bit floats.

    Attributes:
        numbers: of `E4M3`, [out_features, in_features].
        scales: float32 [R, in_features / span], rounded up, of a range of rows.
        span: columns that share a scale.
    """

    numbers: LazyTensor
    scales: Callable[[slice], Tensor]
    span: int

    def tensor(self) -> LazyTensor:
        """Returns it as a tensor of float32, with the blocks that it can stay in."""
        shape = self.numbers.shape
        type_ = e4m3_type(shape[1], self.span)
        stored = None
        if type_ is not None:
            width = shape[1] // type_.block * type_.block_bytes
            rows = LazyTensor((shape[0], width), torch.uint8, partial(self._blocks, block=type_.block))
            stored = StoredTensor(type_, rows)
        return LazyTensor(shape, torch.float32, self._dequantized, stored=stored)

    def _dequantized(self, rows: slice) -> Tensor:
        return self.numbers.read(rows).float() * self._scales_per(1, rows)

    def _blocks(self, rows: slice, block: int) -> Tensor:
        numbers = self.numbers.read(rows).view(torch.uint8).unflatten(-1, (-1, block))
        scales = self._scales_per(block, rows).contiguous().unsqueeze(-1).view(torch.uint8)
        return torch.cat([scales, numbers], dim=-1).flatten(-2)

    def _scales_per(self, columns: int, rows: slice) -> Tensor:
        """Returns the scale of each so many columns, float32 [R, in_features / columns]."""
        num_columns = self.numbers.shape[1]
        times = math.ceil(min(self.span, num_columns) / columns)
        return self.scales(rows).repeat_interleave(times, dim=1)[:, : num_columns // columns]


def _of_blocks(rows: Tensor, block: int) -> Tensor:
    blocks = rows.unflatten(-1, (-1, _HEAD + block))
    scales = blocks[..., :_HEAD].contiguous().view(torch.float32)
    return (blocks[..., _HEAD:].contiguous().view(E4M3).float() * scales).flatten(-2)
