"""Linear layers with a file's quantized weights by plain torch: the oracle of the kernels, and the way without them."""

from __future__ import annotations

import torch
from torch import Tensor

from pipezoo_core.layers.linear import Product
from pipezoo_core.layers.quantized import multiply_in_parts
from pipezoo_core.layers.stored import StoredWeight

__all__ = ["StoredProduct"]


class StoredProduct(Product):
    """`x Wᵀ + b` with W dequantized for each product, some rows after the other: in little memory, and slowly.

    Args:
        weight: on a CPU.
        bias: [out_features], or None.
        dtype: of what it computes.
    """

    def __init__(self, weight: StoredWeight, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._weight, self._dtype = weight, dtype
        self._bias = None if bias is None else bias.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        return multiply_in_parts(x, len(self._weight.rows), self._dequantized, self._bias)

    def rows(self, indices: Tensor) -> Tensor:
        """Maps int64 [T] to these rows of W."""
        return self._dequantized(indices).to(self._dtype)

    def _dequantized(self, rows: slice | Tensor) -> Tensor:
        return self._weight.type.dequantize(self._weight.rows[rows])
