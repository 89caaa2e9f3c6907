"""Checkpoints whose experts are in MXFP4 (Open Compute Project, 2023), as transformers has them of gpt-oss.

A layer's matrices have `…_blocks` uint8 [experts, out, groups, 16], with two numbers of E2M1 in a byte, the first in
the lower half, and `…_scales` uint8 [experts, out, groups], exponents of 2 with 127 added. A group is 32 numbers of a
row.

What they become keeps the name of the blocks, [experts, out, in]: matrices that are not quantized lie the other way
around, under the name without `_blocks`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipezoo_core.layers.stored import StoredType
from pipezoo_core.weights.base import LazyTensor, StoredTensor
from pipezoo_core.weights.quantized.entries import Entries, parsed
from pipezoo_core.weights.quantized.format import QuantizedFormat, checked_part

__all__ = ["MXFP4"]

_PARTS = re.compile(r"(.+)_(blocks|scales)")
_GROUP, _BYTES = 32, 16
_NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NAN = 255  # among exponents


class _Entries(Entries):
    modules_to_not_convert: list[str] | None = None


class MXFP4(QuantizedFormat):
    """How transformers stores the experts of gpt-oss.

    Args:
        config: the `quantization_config`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.left_out = parsed(_Entries, config).modules_to_not_convert or ()

    def part_of(self, name: str) -> tuple[str, str] | None:
        """See `QuantizedFormat`."""
        found = _PARTS.fullmatch(name)
        return None if found is None else (f"{found[1]}_blocks", found[2])

    def weight(self, name: str, parts: Mapping[str, LazyTensor]) -> LazyTensor:
        """See `QuantizedFormat`. It is that of all experts: [experts, out_features, in_features]."""
        blocks = checked_part(name, parts, "blocks", (torch.uint8,), (None, None, None, _BYTES))
        experts, num_rows, groups, _ = blocks.shape
        scales = checked_part(name, parts, "scales", (torch.uint8,), (experts, num_rows, groups))
        vectors, vectors_of_scales = blocks.read_vectors, scales.read_vectors
        assert vectors is not None, "these are a file's"
        assert vectors_of_scales is not None, "these are a file's"

        def read_vectors(rows: slice) -> Tensor:
            numbers = vectors(slice(rows.start * groups, rows.stop * groups))
            return _joined(numbers.view(-1, groups, _BYTES), vectors_of_scales(rows))

        def read(rows: slice) -> Tensor:
            return read_vectors(slice(rows.start * num_rows, rows.stop * num_rows)).unflatten(0, (-1, num_rows))

        as_bytes = LazyTensor((experts, num_rows, groups * _TYPE.block_bytes), torch.uint8, read, read_vectors)
        return LazyTensor(
            (experts, num_rows, groups * _GROUP),
            torch.float32,
            lambda rows: _dequantized(read(rows)),
            lambda rows: _dequantized(read_vectors(rows)),
            stored=StoredTensor(_TYPE, as_bytes),
        )


def _joined(numbers: Tensor, scales: Tensor) -> Tensor:
    """Returns rows of blocks as GGUF has them: a scale, and 16 bytes with number i and number 16 + i in byte i.

    Args:
        numbers: uint8 [R, groups, 16], with numbers 2 i and 2 i + 1 in byte i.
        scales: uint8 [R, groups].
    """
    first, second = numbers.split(_BYTES // 2, dim=-1)
    even, odd = first & 15 | (second & 15) << 4, first >> 4 | second & 0xF0
    halves = torch.stack([even, odd], dim=-1).flatten(-2)
    return torch.cat([scales.unsqueeze(-1), halves], dim=-1).flatten(-2)


def _dequantized(rows: Tensor) -> Tensor:
    """Returns the numbers of rows of blocks: uint8 [..., bytes] to float32 [..., in_features]."""
    blocks = rows.unflatten(-1, (-1, 1 + _BYTES))
    codes, exponents = blocks[..., 1:], blocks[..., :1].int()
    numbers = torch.tensor([*_NUMBERS, *(-number for number in _NUMBERS)], dtype=torch.float32, device="cpu")
    found = numbers[torch.cat([codes & 15, codes >> 4], dim=-1).int()]
    scaled = torch.ldexp(found, exponents - 127)
    return torch.where(exponents == _NAN, torch.nan, scaled).flatten(-2)


_TYPE = StoredType("MXFP4", _GROUP, 1 + _BYTES, _dequantized)
