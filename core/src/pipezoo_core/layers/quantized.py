"""Weights of 8 or 4 bits, in groups of 32 numbers along the inner dimension.

A group of 8 bits holds `scale · q` with q from -127 to 127 and the scale in float16: GGUF's Q8_0. One of 4 bits holds
`scale · q + minimum` with q from 0 to 15. Scale and minimum are 8 bits, too, of the greatest scale and of the least
minimum of their row, which are float32: as in GGUF's Q4_K, with 8 bits instead of 6 and rows instead of blocks of 256.
They are rounded so that no number is cut off: minima down, scales up.

Here they are plain torch, for any device, and the oracle of the kernels, which pack them in an order of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipezoo_core.layers.linear import Product
from pipezoo_core.native import GROUP

__all__ = [
    "DEQUANTIZED_AT_ONCE",
    "GROUP",
    "QuantizedProduct",
    "from_4_bits",
    "from_8_bits",
    "multiply_in_parts",
    "of_4_bits",
    "of_8_bits",
]

DEQUANTIZED_AT_ONCE = 1 << 22
"""Numbers of a quantized weight that plain torch makes floats of at a time."""

_LEVELS = 255  # of scales and minima of 4 bits


class QuantizedProduct(Product):
    """`x Wᵀ + b` with W dequantized for each product, some rows after the other: in little memory, and slowly.

    Args:
        weight: [out_features, in_features], in_features a multiple of `GROUP`.
        bias: [out_features], or None.
        bits: 8 or 4.
        dtype: of what it computes.
    """

    @staticmethod
    def size_of(weight: Tensor, bits: int | None) -> int:
        """Returns the bytes that a weight takes: its numbers, two bytes per group, with 4 bits two float32 per row."""
        num_numbers, num_rows = weight.numel(), len(weight)
        num_groups = num_numbers // GROUP
        return num_numbers + 2 * num_groups if bits == 8 else num_numbers // 2 + 2 * num_groups + 8 * num_rows

    def __init__(self, weight: Tensor, bias: Tensor | None, bits: int, dtype: torch.dtype) -> None:
        groups = weight.detach().float().unflatten(-1, (-1, GROUP))
        self._parts = of_8_bits(groups) if bits == 8 else of_4_bits(groups)
        self._dequantize = from_8_bits if bits == 8 else from_4_bits
        self._dtype = dtype
        self._bias = None if bias is None else bias.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        return multiply_in_parts(x, len(self._parts[0]), self.dequantized, self._bias)

    def rows(self, indices: Tensor) -> Tensor:
        """Maps int64 [T] to these rows of W."""
        return self.dequantized(indices).to(self._dtype)

    def dequantized(self, rows: slice | Tensor) -> Tensor:
        """Returns rows of the weight that is computed with, float32 [R, in_features]."""
        return self._dequantize(*(part[rows] for part in self._parts)).flatten(-2)


def multiply_in_parts(x: Tensor, num_rows: int, dequantized: Callable[[slice], Tensor], bias: Tensor | None) -> Tensor:
    """Returns `x Wᵀ + b` with a weight of which only some rows are dequantized at a time.

    Args:
        x: [..., in_features].
        num_rows: of W.
        dequantized: makes float32 [R, in_features] of a range of rows.
        bias: [num_rows], or None.
    """
    at_once = max(1, DEQUANTIZED_AT_ONCE // x.shape[-1])
    x_TI = x.flatten(0, -2)
    y_TO = x.new_empty(len(x_TI), num_rows)
    for start in range(0, num_rows, at_once):
        part = slice(start, start + at_once)
        torch.mm(x_TI, dequantized(part).to(x.dtype).T, out=y_TO[:, part])
    if bias is not None:
        y_TO += bias
    return y_TO.unflatten(0, x.shape[:-1])


def of_8_bits(groups: Tensor) -> tuple[Tensor, ...]:
    """Returns int8 [out_features, G, GROUP] and float16 scales [out_features, G, 1]."""
    scale = (groups.abs().amax(-1, keepdim=True) / 127).half()
    values = (groups * _inverse(scale.float())).round().clamp(-127, 127)
    return values.to(torch.int8), scale


def from_8_bits(values: Tensor, scale: Tensor) -> Tensor:
    """Returns float32 [out_features, G, GROUP] of what `of_8_bits` returned."""
    return values * scale.float()


def of_4_bits(groups: Tensor) -> tuple[Tensor, ...]:
    """Returns two numbers per byte, and scales and minima as levels and their step.

    That is uint8 [out_features, G, GROUP / 2], twice uint8 [out_features, G, 1] and float32 [out_features, 1, 1].
    """
    minima, minimum_step = _in_levels(groups.amin(-1, keepdim=True).clamp(max=0))
    groups = groups - minima * minimum_step
    scales, scale_step = _in_levels(groups.amax(-1, keepdim=True) / 15)
    values = (groups * _inverse(scales * scale_step)).round().clamp(0, 15).to(torch.uint8)
    return values[..., ::2] | values[..., 1::2] << 4, scales, scale_step, minima, minimum_step


def from_4_bits(pairs: Tensor, scales: Tensor, scale_step: Tensor, minima: Tensor, minimum_step: Tensor) -> Tensor:
    """Returns float32 [out_features, G, GROUP] of what `of_4_bits` returned."""
    values = torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(-2)
    return (values * (scales * scale_step)).add_(minima * minimum_step)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, 1 / scale, 0)


def _in_levels(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds numbers of one sign, [out_features, G, 1], away from 0 to 8 bits of the greatest in their row.

    Returns:
        uint8 [out_features, G, 1], and what to multiply them with, [out_features, 1, 1].
    """
    step = numbers.abs().amax(1, keepdim=True).copysign(numbers.sum(1, keepdim=True)) / _LEVELS
    levels = torch.where(step != 0, (numbers / step).ceil().clamp(max=_LEVELS), 0)
    return levels.to(torch.uint8), step
