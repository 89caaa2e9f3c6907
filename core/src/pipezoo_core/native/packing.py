"""The forms in which the kernels read a weight, and how large they are."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pipezoo_core.native.variants import PANEL

__all__ = [
    "GROUP",
    "SPAN",
    "Form",
    "Packing",
    "StoredBlocks",
    "bits_per_number",
    "packed_bytes",
    "packed_size",
    "plain_bytes",
    "stored_blocks",
]

GROUP = 32
"""Numbers of a quantized weight that share a scale."""

SPAN = 128
"""Floats of 8 bits that share a scale."""


class Form(enum.IntEnum):
    """What a linear layer's kernel writes.

    Attributes:
        plain: the product.
        gated: `activation(x Gᵀ) · (x Uᵀ)`, where W is G and, below it, U. Packed, and in the bias, `GATE` of one and
            of the other follow by turns.
        wide: the product in float32, whatever the dtype of the model.
    """

    plain = 0
    gated = 1
    wide = 2


class Packing(enum.IntEnum):
    """What the numbers of a packed weight are; the layouts are in `kernels/native/packing.h`.

    Attributes:
        none: numbers of the model's dtype.
        int8: rounded to 8 bits, as in GGUF's Q8_0, or the numbers of such a tensor.
        int4: rounded to 4 bits.
        q4_0: the numbers, scales and minima of a tensor of GGUF's type Q4_0, and so on.
        affine4_32: the numbers of 4 bits, zeros and scales of groups of 32 columns, and so on.
        mxfp4: the numbers and scales of MXFP4, in a GGUF file or in safetensors.
        e4m3: floats of 8 bits, with a scale for each `SPAN` of a row.
    """

    none = 0
    int8 = 1
    int4 = 2
    q4_0 = 3
    q4_1 = 4
    q4_k = 5
    q5_k = 6
    q6_k = 7
    affine4_32 = 8
    affine4_64 = 9
    affine4_128 = 10
    affine8_32 = 11
    affine8_64 = 12
    mxfp4 = 13
    e4m3 = 14

    @classmethod
    def of_bits(cls, bits: int | None) -> Packing:
        """Returns what a weight becomes that is rounded to 8 or 4 bits, or is left as it is."""
        return {None: cls.none, 8: cls.int8, 4: cls.int4}[bits]

    @classmethod
    def of_type(cls, name: str) -> Packing | None:
        """Returns what a tensor becomes that has such blocks, e.g. `Q4_K`; None where it cannot be packed."""
        return _OF_TYPES[name].packing if name in _OF_TYPES else None


class StoredBlocks(NamedTuple):
    """A kind of blocks and what they become: a type of GGUF, or affine ones, see `weights.quantized.affine`.

    Attributes:
        packing: of the packed weight.
        block: numbers of one.
        block_bytes: of one.
        row_bytes: of a row, before its blocks.
    """

    packing: Packing
    block: int
    block_bytes: int
    row_bytes: int = 0


_OF_TYPES = {
    "Q8_0": StoredBlocks(Packing.int8, 32, 34),
    "Q4_0": StoredBlocks(Packing.q4_0, 32, 18),
    "Q4_1": StoredBlocks(Packing.q4_1, 32, 20),
    "Q4_K": StoredBlocks(Packing.q4_k, 256, 144),
    "Q5_K": StoredBlocks(Packing.q5_k, 256, 176),
    "Q6_K": StoredBlocks(Packing.q6_k, 256, 210),
    "rounded4": StoredBlocks(Packing.int4, 32, 18, 8),
    "affine4_32": StoredBlocks(Packing.affine4_32, 32, 5 + 16),
    "affine4_64": StoredBlocks(Packing.affine4_64, 64, 5 + 32),
    "affine4_128": StoredBlocks(Packing.affine4_128, 128, 5 + 64),
    "affine8_32": StoredBlocks(Packing.affine8_32, 32, 5 + 32),
    "affine8_64": StoredBlocks(Packing.affine8_64, 64, 5 + 64),
    "MXFP4": StoredBlocks(Packing.mxfp4, 32, 17),
    "e4m3_128": StoredBlocks(Packing.e4m3, 128, 4 + 128),
    "e4m3_64": StoredBlocks(Packing.e4m3, 64, 4 + 64),
    "e4m3_32": StoredBlocks(Packing.e4m3, 32, 4 + 32),
}


def stored_blocks(type_name: str) -> StoredBlocks:
    """Returns what the kernels know of a type that `Packing.of_type` knows."""
    return _OF_TYPES[type_name]


_BLOCK = 8 * GROUP
_BLOCK_BYTES = {
    Packing.int8: 8 * (GROUP + 2),
    Packing.int4: 8 * (GROUP // 2 + 2),
    Packing.q4_0: 8 * (GROUP // 2 + 2),
    Packing.q4_1: 8 * (GROUP // 2 + 4),
    Packing.q4_k: 4 + 8 * (GROUP // 2 + 2),
    Packing.q5_k: 4 + 8 * (GROUP * 5 // 8 + 2),
    Packing.q6_k: 2 + 8 * (GROUP * 6 // 8 + 2),
    Packing.affine4_32: 8 * (16 + 3),
    Packing.affine4_64: 4 * (32 + 3),
    Packing.affine4_128: 2 * (64 + 3),
    Packing.affine8_32: 8 * (32 + 5),
    Packing.affine8_64: 4 * (64 + 5),
    Packing.mxfp4: 8 * (GROUP // 2 + 1),
    Packing.e4m3: 2 * (SPAN + 4),
}
_ROW_BYTES = {Packing.int4: 8}  # besides


def packed_size(weight: Tensor, packing: Packing) -> int:
    """Returns the bytes of a weight, which may be on the meta device, when it is packed."""
    if packing is Packing.none:
        return plain_bytes(tuple(weight.shape), weight.dtype.itemsize)
    return packed_bytes(tuple(weight.shape), packing)


def plain_bytes(shape: Sequence[int], itemsize: int) -> int:
    """Returns the bytes of a packed weight of this shape whose numbers have `itemsize` bytes each."""
    num_rows, size = shape
    return _padded(num_rows) * size * itemsize


def packed_bytes(shape: Sequence[int], packing: Packing) -> int:
    """Returns the bytes of a packed weight of this shape and of few bits."""
    num_rows, size = shape
    if packing is Packing.e4m3:
        return _padded(num_rows) * (size + 4 * -(-size // SPAN))
    return _padded(num_rows) * (_ROW_BYTES.get(packing, 0) + size * _BLOCK_BYTES[packing] // _BLOCK)


def bits_per_number(packing: Packing) -> float:
    """Returns the bits that a number takes, its share of scales and minima included, in a wide row of few bits."""
    return _BLOCK_BYTES[packing] * 8 / _BLOCK


def _padded(num_rows: int) -> int:
    return -(-num_rows // PANEL) * PANEL
