"""Weights of 8 or 4 bits, in groups of 32 numbers along the inner dimension.

A group of 8 bits holds `scale · q` with q from -127 to 127 and the scale in float16: GGUF's Q8_0. One of 4 bits holds
`scale · q + minimum` with q from 0 to 15. Scale and minimum are 8 bits, too, of the greatest scale and of the least
minimum of their row, which are float32: as in GGUF's Q4_K, with 8 bits instead of 6 and rows instead of blocks of 256.
They are rounded so that no number is cut off: minima down, scales up.

Here they are plain torch, for any device, and the oracle of the kernels, which pack them in an order of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipezoo_core.layers.linear import Product
from pipezoo_core.native import GROUP

__all__ = ["DEQUANTIZED_AT_ONCE", "GROUP", "QuantizedProduct", "dequantize", "quantize"]

DEQUANTIZED_AT_ONCE = 1 << 22  # numbers

_LEVELS = 255  # of scales and minima of 4 bits


def quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a weight as small integers.

    Args:
        weight: [out_features, in_features], in_features a multiple of `GROUP`.
        bits: 8 or 4.

    Returns:
        int8 [out_features, groups, GROUP], and float32 [out_features, groups, 1] scales and minima.
    """
    groups = weight.float().unflatten(-1, (-1, GROUP))
    if bits == 8:
        scale = (groups.abs().amax(-1, keepdim=True) / 127).half().float()
        minimum = torch.zeros_like(scale)
    else:
        minimum = _in_levels(groups.amin(-1, keepdim=True).clamp(max=0))
        scale = _in_levels((groups.amax(-1, keepdim=True) - minimum) / 15)
    inverse = torch.where(scale > 0, 1 / scale, 0)
    values = ((groups - minimum) * inverse).round()
    return values.clamp(-127 if bits == 8 else 0, 127 if bits == 8 else 15).to(torch.int8), scale, minimum


def _in_levels(numbers: Tensor) -> Tensor:
    """Rounds numbers of one sign, [out_features, groups, 1], away from 0 to 8 bits of the greatest in their row."""
    level = numbers.abs().amax(1, keepdim=True).copysign(numbers.sum(1, keepdim=True)) / _LEVELS
    return torch.where(level != 0, (numbers / level).ceil().clamp(max=_LEVELS), 0) * level


def dequantize(values: Tensor, scale: Tensor, minimum: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the weight [out_features, in_features] that the integers stand for."""
    return (values * scale).add_(minimum).flatten(-2).to(dtype)


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
        """Returns the bytes that a weight takes: an int8 per number; per group, scale and minimum in float32."""
        del bits
        return weight.numel() + weight.numel() // GROUP * 8

    def __init__(self, weight: Tensor, bias: Tensor | None, bits: int, dtype: torch.dtype) -> None:
        self._quantized = quantize(weight.detach(), bits)
        self._dtype = dtype
        self._bias = None if bias is None else bias.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        num_rows, num_groups, _ = self._quantized[0].shape
        at_once = max(1, DEQUANTIZED_AT_ONCE // (num_groups * GROUP))
        x_TI = x.flatten(0, -2)
        y_TO = x.new_empty(len(x_TI), num_rows)
        for start in range(0, num_rows, at_once):
            part = slice(start, start + at_once)
            values, scale, minimum = (numbers[part] for numbers in self._quantized)
            torch.mm(x_TI, dequantize(values, scale, minimum, x.dtype).T, out=y_TO[:, part])
        if self._bias is not None:
            y_TO += self._bias
        return y_TO.unflatten(0, x.shape[:-1])

    def rows(self, indices: Tensor) -> Tensor:
        """Maps int64 [T] to these rows of W."""
        values, scale, minimum = (part[indices] for part in self._quantized)
        return dequantize(values, scale, minimum, self._dtype)
