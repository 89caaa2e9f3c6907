"""Checkpoints of 8-bit floats with `quant_method: fp8`, as DeepSeek, Qwen and Mistral publish them, or `fbgemm_fp8`.

A layer has `weight`, e4m3 [out, in], and `weight_scale_inv`, or `weight_scale`: of a block of rows and columns each one
number, where `weight_block_size` names the block's sizes; else one number, or one of each row. It is what numbers are
multiplied with, in spite of its name.

Scales of activations (`input_scale`, `activation_scale`) are passed over: rows are not rounded to 8 bits here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import AliasChoices, Field

from pipezoo_core.weights.base import LazyTensor
from pipezoo_core.weights.quantized.e4m3 import E4M3, E4M3Weight
from pipezoo_core.weights.quantized.entries import Entries, Size, not_read, parsed
from pipezoo_core.weights.quantized.format import QuantizedFormat, check_parts, checked_part, suffix_of
from pipezoo_core.weights.quantized.scales import block_scales, row_scales

__all__ = ["FP8"]

_SCALES = ("weight_scale_inv", "weight_scale")
_PARTS = ("weight", *_SCALES, "input_scale", "activation_scale")


class _Entries(Entries):
    weight_block_size: tuple[Size, Size] | None = None
    fmt: str = "e4m3"
    left_out: list[str] | None = Field(
        default=None, validation_alias=AliasChoices("modules_to_not_convert", "ignored_layers")
    )


class FP8(QuantizedFormat):
    """How transformers stores weights of 8-bit floats.

    Args:
        config: the `quantization_config`.

    Raises:
        UnsupportedCheckpointError: they are other floats, or a block has no size.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._entries = parsed(_Entries, config)
        self.left_out = self._entries.left_out or ()
        if self._entries.fmt != "e4m3":
            raise not_read("the checkpoint is of a kind of FP8", self._entries.fmt, ["e4m3"])
        if self._entries.weight_block_size is not None and min(self._entries.weight_block_size) < 1:
            raise not_read("the checkpoint has blocks of FP8", self._entries.weight_block_size, ["[128, 128]"])

    def part_of(self, name: str) -> tuple[str, str] | None:
        """See `QuantizedFormat`."""
        return suffix_of(name, _PARTS)

    def weight(self, name: str, parts: Mapping[str, LazyTensor]) -> LazyTensor:
        """See `QuantizedFormat`."""
        numbers = checked_part(name, parts, "weight", (E4M3,), (None, None))
        named = next((part for part in _SCALES if part in parts), _SCALES[0])
        check_parts(name, parts, ("weight", named))
        block = self._entries.weight_block_size
        if block is None:
            return E4M3Weight(numbers=numbers, scales=row_scales(name, parts, named), span=numbers.shape[1]).tensor()
        return E4M3Weight(numbers=numbers, scales=block_scales(name, parts, named, block), span=block[1]).tensor()
