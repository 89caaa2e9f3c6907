"""Linear layers, and several of them that read the same input merged into one.

How the product is computed is chosen once, after the weights are loaded: see `linear_backends`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Linear", "MergedLinear", "Product"]


class Product(Protocol):
    """`x Wᵀ + b`, with W in whatever form it is computed from.

    Attributes:
        rows: maps int64 [T] to these rows of W; None where the form does not allow it.
    """

    rows: Callable[[Tensor], Tensor] | None

    def __call__(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        ...


class Linear(nn.Module):
    """`y = x Wᵀ + b` for inference. W is [out_features, in_features].

    Args:
        in_features: numbers per input row.
        out_features: numbers per output row.
        bias: whether there is a b.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self._product: Callable[[Tensor], Tensor] = self._plain

    def _plain(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        return self._product(x)

    def compute_with(self, product: Product) -> None:
        """Computes with `product` from now on, which holds the weights in a form of its own; lets go of the plain ones.

        A weight that another layer shares stays there.
        """
        self._product = product
        del self.weight
        self.bias = None

    def add_to_product(self, add: Callable[[Tensor, Tensor], None]) -> None:
        """Calls `add(x, y)` after every product from now on, which adds to y, [..., out_features], in place.

        Call it when the way to compute the product is chosen.
        """
        product = self._product

        def sum_(x: Tensor) -> Tensor:
            y = product(x)
            add(x, y)
            return y

        self._product = sum_


class MergedLinear(nn.Module):
    """Linear layers side by side that read the same input, computed as one product.

    `self.qkv_proj = MergedLinear(h, {"q_proj": nq, "k_proj": nkv, "v_proj": nkv})` takes the place of three layers;
    a checkpoint's `q_proj.weight`, `k_proj.weight` and `v_proj.weight` next to it are loaded into its rows.

    Args:
        in_features: numbers per input row.
        parts: name -> out_features of each layer, in the order of the outputs.
        bias: whether each has a bias.
    """

    def __init__(self, in_features: int, parts: Mapping[str, int], *, bias: bool = False) -> None:
        super().__init__()
        self.parts = dict(parts)
        self.merged = Linear(in_features, sum(parts.values()), bias=bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps [..., in_features] to one [..., out_features] per part."""
        return self.merged(x).split(list(self.parts.values()), dim=-1)

    def slots(self) -> dict[str, Tensor]:
        """Returns the rows of each part, named as in a checkpoint, e.g. `q_proj.weight`."""
        sizes = list(self.parts.values())
        return {
            f"{part}.{name}": rows
            for name, parameter in self.merged.named_parameters()
            for part, rows in zip(self.parts, parameter.detach().split(sizes), strict=True)
        }
