"""Weights of 8 or 4 bits, in groups of 32 numbers along the inner dimension.

A group of 8 bits holds `scale · q` with q from -127 to 127, one of 4 bits `scale · q + minimum` with q from 0 to 15,
scale and minimum in float16: the formats that GGUF calls Q8_0 and Q4_1, rounded to nearest. Here they are plain torch,
for any device, and the oracle of the kernels, which pack them in an order of their own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipezoo_core.layers.linear import Product
from pipezoo_core.native import GROUP

__all__ = ["GROUP", "QuantizedProduct", "dequantize", "quantize"]

_RANGES = {8: (-127, 127), 4: (0, 15)}


def quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a weight as small integers.

    Args:
        weight: [out_features, in_features], in_features a multiple of `GROUP`.
        bits: 8 or 4.

    Returns:
        int8 [out_features, groups, GROUP], and float16 [out_features, groups, 1] scales and minima.
    """
    groups = weight.float().unflatten(-1, (-1, GROUP))
    low, high = _RANGES[bits]
    if bits == 8:
        scale, minimum = (groups.abs().amax(-1, keepdim=True) / high).half(), torch.zeros_like(groups[..., :1]).half()
    else:
        lowest, highest = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale, minimum = ((highest - lowest) / high).half(), lowest.half()
    inverse = torch.where(scale > 0, 1 / scale.float(), 0)
    values = ((groups - minimum.float()) * inverse).round().clamp(low, high)
    return values.to(torch.int8), scale, minimum


def dequantize(values: Tensor, scale: Tensor, minimum: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the weight [out_features, in_features] that the integers stand for."""
    return (values * scale.float() + minimum.float()).flatten(-2).to(dtype)


class QuantizedProduct(Product):
    """`x Wᵀ + b` with W dequantized for each product: in little memory, and slowly.

    Args:
        weight: [out_features, in_features], in_features a multiple of `GROUP`.
        bias: [out_features], or None.
        bits: 8 or 4.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, bits: int) -> None:
        self._quantized = quantize(weight.detach(), bits)
        self._dtype = weight.dtype
        self._bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        return F.linear(x, dequantize(*self._quantized, x.dtype), self._bias)

    def rows(self, indices: Tensor) -> Tensor:
        """Maps int64 [T] to these rows of W."""
        values, scale, minimum = (part[indices] for part in self._quantized)
        return dequantize(values, scale, minimum, self._dtype)
