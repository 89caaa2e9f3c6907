"""Checkpoints quantized by GPTQ (Frantar et al., 2022), as AutoGPTQ and GPTQModel store them.

A layer has, with 4 bits and 8 numbers in an int32, `qweight` int32 [in / 8, out], `qzeros` int32 [groups, out / 8],
`scales` [groups, out] and `g_idx` int32 [in], the group of each column. With `desc_act` they are in any order. A number
is `(q - zero) · scale`; of zeros the format `gptq` stores one less, modulo 2^bits, and `gptq_v2` themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from pipezoo_core.config_entries import NUMBER
from pipezoo_core.weights.base import LazyTensor
from pipezoo_core.weights.quantized.affine import AffineWeight, of_words, unpacked
from pipezoo_core.weights.quantized.entries import Entries, Size, not_read, parsed
from pipezoo_core.weights.quantized.format import SCALE_DTYPES, QuantizedFormat, check_parts, checked_part, suffix_of
from pipezoo_core.weights.quantized.grouping import column_groups, group_sizes

__all__ = ["GPTQ"]

_PARTS = ("weight", "qweight", "qzeros", "scales", "g_idx")
_BITS = (4, 8)
_ADDED = {"gptq": 1, "gptq_v2": 0}  # by format: to a stored zero
_NUMBERS_AT_ONCE = 2**24  # each piece reads all of the file's tensor


class _Entries(Entries):
    bits: Annotated[int, NUMBER]
    group_size: Size = 128
    desc_act: bool | None = None
    checkpoint_format: str | None = None
    is_marlin_format: bool = False
    pack_dtype: str | None = None
    dynamic: dict[str, dict[str, Any] | bool | None] | None = None


class GPTQ(QuantizedFormat):
    """How AutoGPTQ and GPTQModel store a checkpoint.

    Args:
        config: the `quantization_config`.

    Raises:
        UnsupportedCheckpointError: it is of another format, or of other bits.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        entries = parsed(_Entries, config)
        named = "gptq" if entries.checkpoint_format is None else entries.checkpoint_format
        kind = "marlin" if entries.is_marlin_format else named
        if kind not in _ADDED:
            raise not_read("the checkpoint is of a format of GPTQ", kind, sorted(_ADDED))
        if entries.bits not in _BITS:
            raise not_read("the checkpoint has a number of bits of GPTQ", entries.bits, _BITS)
        if entries.pack_dtype not in (None, "int32"):
            raise not_read("the checkpoint has GPTQ's numbers in integers of a size", entries.pack_dtype, ["int32"])
        if any(entries.dynamic or ()) and any(not rule.startswith("-:") for rule in entries.dynamic or ()):
            raise not_read("the checkpoint has settings of GPTQ for some modules,", "dynamic", ["-:pattern"])
        self._bits, self._group_size, self._added = entries.bits, entries.group_size, _ADDED[kind]
        self._is_moved = bool(entries.desc_act)
        self.left_out = tuple(f"re:{rule.removeprefix('-:')}" for rule in entries.dynamic or ())

    def part_of(self, name: str) -> tuple[str, str] | None:
        """See `QuantizedFormat`."""
        return suffix_of(name, _PARTS)

    def weight(self, name: str, parts: Mapping[str, LazyTensor]) -> LazyTensor:
        """See `QuantizedFormat`."""
        bits, per_word = self._bits, 32 // self._bits
        qweight = checked_part(name, parts, "qweight", (torch.int32,), (None, None))
        num_columns, num_rows = qweight.shape[0] * per_word, qweight.shape[1]
        group, num_groups = group_sizes(name, num_columns, self._group_size)
        qzeros = checked_part(name, parts, "qzeros", (torch.int32,), (num_groups, -(-num_rows // per_word)))
        scales = checked_part(name, parts, "scales", SCALE_DTYPES, (num_groups, num_rows))
        check_parts(name, parts, ("qweight", "qzeros", "scales", "g_idx"))

        def numbers(rows: slice) -> Tensor:
            return of_words(qweight.read(slice(0, qweight.shape[0]))[:, rows].T)

        def zeros(rows: slice) -> Tensor:
            stored = unpacked(of_words(qzeros.read(slice(0, num_groups))), bits)[:, rows].T
            return stored + self._added & 2**bits - 1

        return AffineWeight(
            method="GPTQ",
            bits=bits,
            shape=(num_rows, num_columns),
            numbers=numbers,
            scales=lambda rows: scales.read(slice(0, num_groups))[:, rows].T,
            zeros=zeros,
            scale_dtype=scales.dtype,
            groups=column_groups(name, parts, "g_idx", num_columns, group, is_needed=self._is_moved),
            group=group,
            numbers_at_once=_NUMBERS_AT_ONCE,
        ).tensor()
