"""Checkpoints quantized by AWQ (Lin et al., 2023) in the layout of AutoAWQ's `gemm` kernels.

A layer has `qweight` int32 [in, out / 8], `qzeros` int32 [groups, out / 8] and `scales` [groups, out]. From the lowest
bits on, an int32 holds columns 0, 2, 4, 6, 1, 3, 5 and 7 of eight. A number is `(q - zero) · scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import AliasChoices, Field
from torch import Tensor

from pipezoo_core.config_entries import NUMBER
from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.weights.base import LazyTensor
from pipezoo_core.weights.quantized.affine import AffineWeight, of_words, unpacked
from pipezoo_core.weights.quantized.entries import Entries, Size, not_read, parsed
from pipezoo_core.weights.quantized.format import SCALE_DTYPES, QuantizedFormat, check_parts, checked_part, suffix_of
from pipezoo_core.weights.quantized.grouping import group_sizes, groups_in_order

__all__ = ["AWQ"]

_PARTS = ("weight", "qweight", "qzeros", "scales")
_BITS, _PER_WORD = 4, 8
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in an int32 each of eight columns lies
_LOWER = 0x0F0F0F0F
_NUMBERS_AT_ONCE = 2**24  # each piece reads all of the file's tensor


class _Entries(Entries):
    bits: Annotated[int, NUMBER] = Field(default=_BITS, validation_alias=AliasChoices("bits", "w_bit"))
    group_size: Size = Field(default=128, validation_alias=AliasChoices("group_size", "q_group_size"))
    version: str = "gemm"
    zero_point: bool = True
    modules_to_not_convert: list[str] | None = None


class AWQ(QuantizedFormat):
    """How AutoAWQ stores a checkpoint.

    Args:
        config: the `quantization_config`.

    Raises:
        UnsupportedCheckpointError: it is of another version, or of other bits.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        entries = parsed(_Entries, config)
        if entries.version.lower() != "gemm":
            raise not_read("the checkpoint is of a version of AWQ", entries.version, ["gemm"])
        if entries.bits != _BITS:
            raise not_read("the checkpoint has a number of bits of AWQ", entries.bits, [_BITS])
        if not entries.zero_point:
            raise not_read("the checkpoint is of AWQ without zero points, a kind", "zero_point: false", ["true"])
        self._group_size = entries.group_size
        self.left_out = entries.modules_to_not_convert or ()

    def part_of(self, name: str) -> tuple[str, str] | None:
        """See `QuantizedFormat`."""
        return suffix_of(name, _PARTS)

    def weight(self, name: str, parts: Mapping[str, LazyTensor]) -> LazyTensor:
        """See `QuantizedFormat`."""
        if set(parts) == {"scales"}:
            raise not_read(
                f"{name.removesuffix('.weight')} is scaled by AWQ in a way", "scales of activations", ["none"]
            )
        qweight = checked_part(name, parts, "qweight", (torch.int32,), (None, None))
        num_columns, num_words = qweight.shape
        num_rows = num_words * _PER_WORD
        group, num_groups = group_sizes(name, num_columns, self._group_size)
        _check_divided(name, num_columns, group)
        qzeros = checked_part(name, parts, "qzeros", (torch.int32,), (num_groups, num_words))
        scales = checked_part(name, parts, "scales", SCALE_DTYPES, (num_groups, num_rows))
        check_parts(name, parts, ("qweight", "qzeros", "scales"))
        return AffineWeight(
            method="AWQ",
            bits=_BITS,
            shape=(num_rows, num_columns),
            numbers=lambda rows: _packed_rows(qweight, rows),
            scales=lambda rows: scales.read(slice(0, num_groups))[:, rows].T,
            zeros=lambda rows: unpacked(_packed_rows(qzeros, rows), _BITS)[:, :num_groups],
            scale_dtype=scales.dtype,
            groups=groups_in_order(num_columns, group),
            group=group,
            numbers_at_once=_NUMBERS_AT_ONCE,
        ).tensor()


def _packed_rows(words: LazyTensor, rows: slice) -> Tensor:
    """Returns a range of the columns of [I, W] words as rows, two numbers in a byte: uint8 [R, I / 2], rounded up."""
    first, end = rows.start // _PER_WORD, -(-rows.stop // _PER_WORD)
    found = words.read(slice(0, words.shape[0]))[:, first:end]
    found = torch.nn.functional.pad(found, (0, 0, 0, len(found) % 2))
    even, odd = found[::2], found[1::2]
    # of each byte of a word the lower half, and the upper half
    halves = [even & _LOWER | (odd & _LOWER) << _BITS, even >> _BITS & _LOWER | odd & ~_LOWER]
    of_bytes = [of_words(half.T).unflatten(-1, (-1, 4)) for half in halves]  # [W, I / 2, 4]
    of_rows = torch.stack([of_bytes[place % 2][..., place // 2] for place in _PLACES], dim=1).flatten(0, 1)
    return of_rows[rows.start - first * _PER_WORD : rows.stop - first * _PER_WORD]


def _check_divided(name: str, num_columns: int, group: int) -> None:
    """Checks that all groups have as many columns."""
    if num_columns % group:
        raise CorruptCheckpointError(
            f"{name} has groups that do not divide its columns, by the quantization_config",
            found=f"groups of {group}, {num_columns} columns",
            allowed=f"a divisor of {num_columns}",
            cure="Correct the quantization_config.",
        )
