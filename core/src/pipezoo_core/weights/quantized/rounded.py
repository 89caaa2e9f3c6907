"""Weights that `pipezoo quantize` has rounded: the numbers that a load with `int8` or `int4` rounds to.

A tensor `a.weight_int8` is GGUF's Q8_0, rows of blocks: for each 32 numbers a float16 scale and [32] of q. Rows of
`a.weight_int4` begin with two float32, the steps of their scales and minima. Then follow, for each 32 numbers, scale
and minimum of 8 bits, and [16] bytes with two of q, the first in the lower half. See `layers.quantized`.

All tensors have the names of the plugin's module.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.layers.quantized import GROUP, from_4_bits, from_8_bits, of_4_bits, of_8_bits
from pipezoo_core.layers.stored import StoredType
from pipezoo_core.weights.base import LazyTensor, StoredTensor
from pipezoo_core.weights.quantized.entries import Entries, not_read, parsed
from pipezoo_core.weights.quantized.format import checked_part, suffix_of

__all__ = ["ROUNDED", "Rounded", "rounded_rows", "rounding_entries", "row_bytes"]

ROUNDED = "pipezoo"
"""The `quant_method` of such checkpoints."""

_VERSION = 1
_PARTS: Mapping[str, Literal[8, 4]] = {"weight_int8": 8, "weight_int4": 4}
_BLOCK_BYTES = {8: 2 + GROUP, 4: 2 + GROUP // 2}
_STEPS = 8  # bytes of a row of 4 bits, before its blocks


class _Entries(Entries):
    version: int
    dtype: Literal["int8", "int4"]


class Rounded:
    """Reads what `pipezoo quantize` has written: see `QuantizedFormat`.

    Args:
        raw: the `quantization_config`.

    Raises:
        UnsupportedCheckpointError: a later version has written it.
        CorruptCheckpointError: it says no version.

    Attributes:
        dtype: that the weights were rounded to.
    """

    left_out: Collection[str] = ()  # the names of the tensors say what is quantized

    def __init__(self, raw: Mapping[str, Any]) -> None:
        entries = parsed(_Entries, raw)
        version, self.dtype = entries.version, entries.dtype
        if version != _VERSION:
            raise not_read("the checkpoint is quantized by pipezoo in another version of its form", version, [_VERSION])

    def part_of(self, name: str) -> tuple[str, str] | None:
        """See `QuantizedFormat`."""
        return suffix_of(name, ("weight", *_PARTS))

    def weight(self, name: str, parts: Mapping[str, LazyTensor]) -> LazyTensor:
        """See `QuantizedFormat`."""
        part, *others = sorted(parts)
        if others:
            raise CorruptCheckpointError(
                f"{name} is there twice", found=sorted(parts), cure="Quantize the model again."
            )
        bits = _PARTS[part]
        rows = checked_part(name, parts, part, (torch.uint8,), (None, None))
        groups, rest = divmod(rows.shape[1] - row_bytes(0, bits), _BLOCK_BYTES[bits])
        if rest or groups < 1:
            raise CorruptCheckpointError(
                f"{name}: {part} has no whole blocks",
                found=f"{rows.shape[1]} bytes a row",
                allowed=f"{row_bytes(0, bits)} and a multiple of {_BLOCK_BYTES[bits]}",
                cure="Quantize the model again.",
            )
        columns = groups * GROUP
        if bits == 8:
            stored = StoredType("int8 of pipezoo", GROUP, _BLOCK_BYTES[8], _dequantized_8, blocks="Q8_0")
        else:  # a row is a block: its steps belong to all of it
            stored = StoredType("int4 of pipezoo", columns, rows.shape[1], _dequantized_4, blocks="rounded4")
        return LazyTensor(
            (rows.shape[0], columns),
            torch.float32,
            lambda wanted: stored.dequantize(rows.read(wanted)),
            stored=StoredTensor(stored, rows),
        )


def rounding_entries(dtype: str) -> dict[str, Any]:
    """Returns the `quantization_config` of a checkpoint that was rounded to `int8` or `int4`."""
    return {"quant_method": ROUNDED, "version": _VERSION, "dtype": dtype}


def row_bytes(num_columns: int, bits: Literal[8, 4]) -> int:
    """Returns the bytes of a row of so many numbers."""
    return (_STEPS if bits == 4 else 0) + num_columns // GROUP * _BLOCK_BYTES[bits]


def rounded_rows(rows: Tensor, bits: Literal[8, 4]) -> Tensor:
    """Rounds rows, float32 [R, columns], to uint8 [R, bytes]; columns are a multiple of `GROUP`."""
    groups = rows.unflatten(-1, (-1, GROUP))
    if bits == 8:
        values, scale = of_8_bits(groups)
        return torch.cat([_as_bytes(scale), values.view(torch.uint8)], dim=-1).flatten(-2)
    pairs, scales, scale_step, minima, minimum_step = of_4_bits(groups)
    steps = torch.cat([_as_bytes(scale_step), _as_bytes(minimum_step)], dim=-1).flatten(-2)
    return torch.cat([steps, torch.cat([scales, minima, pairs], dim=-1).flatten(-2)], dim=-1)


def _as_bytes(numbers: Tensor) -> Tensor:
    return numbers.contiguous().view(torch.uint8)


def _dequantized_8(rows: Tensor) -> Tensor:
    blocks = rows.unflatten(-1, (-1, _BLOCK_BYTES[8]))
    scale = blocks[..., :2].contiguous().view(torch.float16)
    return from_8_bits(blocks[..., 2:].contiguous().view(torch.int8), scale).flatten(-2)


def _dequantized_4(rows: Tensor) -> Tensor:
    steps = rows[..., :_STEPS].contiguous().view(torch.float32)[..., None, :]
    blocks = rows[..., _STEPS:].unflatten(-1, (-1, _BLOCK_BYTES[4]))
    scales, minima, pairs = blocks[..., :1], blocks[..., 1:2], blocks[..., 2:]
    return from_4_bits(pairs, scales, steps[..., :1], minima, steps[..., 1:]).flatten(-2)
