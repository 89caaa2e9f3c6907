"""Weights of 4 or 8 bits whose number is `(q - zero) · scale`, with a scale and a zero for a group of columns.

AWQ, GPTQ and compressed-tensors differ in how they lay these out. Here they become rows of blocks, which ranks can
divide and the kernels pack. A block is one scale in float32, one zero of a byte, and its numbers: of 8 bits a byte
each, of 4 bits two in a byte, the first in the lower half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pipezoo_core.layers.stored import StoredType
from pipezoo_core.weights.base import LazyTensor, StoredTensor
from pipezoo_core.weights.quantized.grouping import groups_in_order

__all__ = ["AffineWeight", "of_words", "unpacked"]

_HEAD = 5  # bytes of a block before its numbers
_BLOCKS = {4: (128, 64, 32), 8: (64, 32)}  # by bits: the numbers that a block may have
_EXACT_SCALES = (torch.float16, torch.bfloat16)  # whose products with a number and with a zero are exact in float32
_NUMBERS_AT_ONCE = 2**20


def unpacked(of_bytes: Tensor, bits: int) -> Tensor:
    """Returns the numbers of bytes, of 4 bits two in each, the first in the lower half: uint8 [..., N · 8 / bits]."""
    return of_bytes if bits == 8 else torch.stack([of_bytes & 15, of_bytes >> 4], dim=-1).flatten(-2)


def of_words(words: Tensor) -> Tensor:
    """Returns the bytes of int32 [..., W], the lowest first: uint8 [..., 4 · W]."""
    return words.clone(memory_format=torch.contiguous_format).view(torch.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineWeight:
    """A quantized weight, taken apart.

    Attributes:
        method: what has quantized it, for people.
        bits: of a number, 4 or 8.
        shape: out_features, in_features.
        numbers: uint8 [R, at least in_features · bits / 8] of a range of rows; of 4 bits two in a byte, the first in
            the lower half.
        scales: float [R, groups] of a range of rows.
        zeros: uint8 [R, groups] of a range of rows; None for the middle of all numbers.
        scale_dtype: of the scales.
        groups: which group each column belongs to, int64 [in_features], as `column_groups` returns them; each has
            `group` of them, but the last may have fewer.
        group: columns of a group.
        numbers_at_once: how many to read at a time.
    """

    method: str
    bits: int
    shape: tuple[int, int]
    numbers: Callable[[slice], Tensor]
    scales: Callable[[slice], Tensor]
    zeros: Callable[[slice], Tensor] | None
    scale_dtype: torch.dtype
    groups: Tensor
    group: int
    numbers_at_once: int = _NUMBERS_AT_ONCE

    def tensor(self) -> LazyTensor:
        """Returns it as a tensor of float32, with the blocks that it can stay in."""
        whole = LazyTensor(self.shape, torch.float32, self._dequantized, numbers_at_once=self.numbers_at_once)
        fitting = [size for size in _BLOCKS[self.bits] if self.group % size == 0]
        is_moved = self.groups is not groups_in_order(self.shape[1], self.group)
        has_whole_groups = self.shape[1] % self.group == 0
        if is_moved:
            has_whole_groups = has_whole_groups and bool((torch.bincount(self.groups) == self.group).all())
        is_exact = self.scale_dtype in _EXACT_SCALES or (self.bits == 8 and self.zeros is None)
        if not (fitting and has_whole_groups and is_exact):
            return whole
        order = self.groups.argsort(stable=True) if is_moved else None
        block = fitting[0]
        stored = StoredType(
            f"{self.method} with {self.bits} bits in groups of {self.group}"
            + (", columns reordered" if is_moved else ""),
            block,
            _HEAD + block * self.bits // 8,
            partial(_of_blocks, bits=self.bits, block=block, places=None if order is None else order.argsort()),
            blocks=f"affine{self.bits}_{block}",
            order=None if order is None else order.to(torch.int32).numpy().tobytes(),
        )
        shape = (self.shape[0], self.shape[1] // block * stored.block_bytes)
        read = partial(self._blocks, block=block, order=order)
        as_bytes = LazyTensor(shape, torch.uint8, read, numbers_at_once=self.numbers_at_once)
        return replace(whole, stored=StoredTensor(stored, as_bytes))

    def _dequantized(self, rows: slice) -> Tensor:
        scales, zeros = self.scales(rows).float(), self._zeros(rows).float()
        return self._unpacked(rows).float().sub_(zeros[:, self.groups]).mul_(scales[:, self.groups])

    def _unpacked(self, rows: slice) -> Tensor:
        return unpacked(self.numbers(rows), self.bits)[:, : self.shape[1]]

    def _zeros(self, rows: slice) -> Tensor:
        if self.zeros is not None:
            return self.zeros(rows)
        num_groups = int(self.groups.max()) + 1
        shape = (rows.stop - rows.start, num_groups)
        return torch.full(shape, 2 ** (self.bits - 1), dtype=torch.uint8, device="cpu")

    def _blocks(self, rows: slice, block: int, order: Tensor | None) -> Tensor:
        numbers = self.numbers(rows) if order is None else self._packed(self._unpacked(rows)[:, order])
        scales, zeros = (
            part.repeat_interleave(self.group // block, dim=1).unsqueeze(-1)
            for part in (self.scales(rows).float(), self._zeros(rows))
        )
        of_bytes = numbers.unflatten(-1, (-1, block * self.bits // 8))
        return torch.cat([scales.contiguous().view(torch.uint8), zeros, of_bytes], dim=-1).flatten(-2)

    def _packed(self, numbers: Tensor) -> Tensor:
        return numbers if self.bits == 8 else numbers[:, ::2] | numbers[:, 1::2] << 4


def _of_blocks(rows: Tensor, bits: int, block: int, places: Tensor | None) -> Tensor:
    blocks = rows.unflatten(-1, (-1, _HEAD + block * bits // 8))
    scales = blocks[..., :4].contiguous().view(torch.float32)
    numbers = unpacked(blocks[..., _HEAD:], bits)
    found = ((numbers.float() - blocks[..., 4:_HEAD].float()) * scales).flatten(-2)
    return found if places is None else found[:, places]
