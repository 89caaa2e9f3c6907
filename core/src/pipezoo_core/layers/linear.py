"""Linear layers, and several of them that read the same input merged into one.

How the product is computed is chosen once, after the weights are loaded: see `linear_backends`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.layers.split import Shard, Split, as_split, sharded
from pipezoo_core.layers.stored import StoredWeight

__all__ = ["ColumnParallelLinear", "JoinedProduct", "Linear", "MergedLinear", "Product", "RowParallelLinear"]


class Product(Protocol):
    """`x Wᵀ + b`, with W in whatever form it is computed from.

    Attributes:
        rows: maps int64 [T] to these rows of W; None where the form does not allow it.
    """

    rows: Callable[[Tensor], Tensor] | None

    def __call__(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        ...


class JoinedProduct(Product):
    """Products of the same input side by side, where not all rows of a weight are of one kind.

    Args:
        products: in the order of the outputs.
        sizes: for each of them those of the parts that it computes.
    """

    rows = None

    def __init__(self, products: Sequence[Product], sizes: Sequence[Sequence[int]]) -> None:
        self._products, self._sizes = products, sizes

    def __call__(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        return torch.cat([product(x) for product in self._products], dim=-1)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps [..., in_features] to one [..., size] per part; they do not lie side by side."""
        found = zip(self._products, self._sizes, strict=True)
        return tuple(part for product, sizes in found for part in product(x).split(list(sizes), dim=-1))


class Linear(nn.Module):
    """`y = x Wᵀ + b` for inference. W is [out_features, in_features].

    Args:
        in_features: numbers per input row.
        out_features: numbers per output row.
        bias: whether there is a b.

    Attributes:
        full_shape: out_features and in_features of the whole layer, of which a rank may have a part.
        stored: the rows as a file has quantized them, in runs of one type, in place of a weight; empty where there is
            one.
    """

    stored: Sequence[StoredWeight] = ()
    _product: Callable[[Tensor], Tensor] | None = None  # in place of `_plain`

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.full_shape = (out_features, in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        return self._plain(x) if self._product is None else self._product(x)

    def _plain(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    @property
    def product(self) -> Callable[[Tensor], Tensor] | None:
        """What computes it in place of torch."""
        return self._product

    def compute_with(self, product: Product) -> None:
        """Computes with `product` from now on, which holds the weights in a form of its own; lets go of the plain ones.

        A weight that another layer shares stays there.
        """
        self._product = product
        if self.stored:
            self.stored = ()
        else:
            del self.weight
        self.bias = None

    def keep(self, stored: Sequence[StoredWeight]) -> None:
        """Has a file's rows in place of a plain weight, until `compute_with` is called."""
        self.stored = stored
        del self.weight

    @property
    def reordered(self) -> list[int]:
        """The numbers per row of a copy of the input that a product of the kernels makes for what it has of a file."""
        return [self.in_features] if any(weight.type.order is not None for weight in self.stored) else []

    def add_to_product(self, add: Callable[[Tensor, Tensor], None]) -> None:
        """Calls `add(x, y)` after every product from now on, which adds to y, [..., out_features], in place.

        Call it when the way to compute the product is chosen.
        """
        product = self._product or self._plain

        def sum_(x: Tensor) -> Tensor:
            y = product(x)
            add(x, y)
            return y

        self._product = sum_


class ColumnParallelLinear(Linear):
    """A `Linear` whose outputs the ranks of a group divide: each computes its columns of `y`, from all of `x`.

    Args:
        in_features: numbers per input row.
        out_features: numbers per output row; several, where these are parts that are divided each by itself.
        bias: whether there is a b.

    Attributes:
        full_sizes: the numbers of each part.
        sizes: this rank's of them.
        ranges: which of all numbers of a part these are; empty where the ranks do not divide them.
    """

    def __init__(
        self, in_features: int, out_features: int | Split | Sequence[int | Split], *, bias: bool = False
    ) -> None:
        parts = out_features if isinstance(out_features, Sequence) else [out_features]
        self._splits = [as_split(part) for part in parts]
        self.full_sizes = [split.size for split in self._splits]
        self.sizes = self.full_sizes
        super().__init__(in_features, sum(self.sizes), bias=bias)
        self.ranges: list[slice] = []
        self.shards: dict[str, Shard] = {}

    def shard(self, group: TensorParallelGroup) -> None:
        """Keeps this rank's rows of W and b."""
        self.ranges = [split.part(group.rank, group.size) for split in self._splits]
        starts = accumulate(self.sizes, initial=0)
        rows = (slice(at + part.start, at + part.stop) for at, part in zip(starts, self.ranges, strict=False))
        self.sizes = [part.stop - part.start for part in self.ranges]
        self.out_features = sum(self.sizes)
        self.shards = dict.fromkeys(("weight", "bias"), Shard(0, tuple(rows)))
        self.weight = sharded(self.weight, self.shards["weight"])
        if self.bias is not None:
            self.bias = sharded(self.bias, self.shards["bias"])


class RowParallelLinear(Linear):
    """A `Linear` whose inputs the ranks of a group divide: each has its columns of `x`, and the products are summed.

    What comes before it is computed by layers that divide their outputs in the same way.

    Args:
        in_features: numbers per input row.
        out_features: numbers per output row.
        bias: whether there is a b. Rank 0 adds it.
    """

    def __init__(self, in_features: int | Split, out_features: int, *, bias: bool = False) -> None:
        self._split = as_split(in_features)
        super().__init__(self._split.size, out_features, bias=bias)
        self.shards: dict[str, Shard] = {}
        self._group: TensorParallelGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., this rank's in_features] to [..., out_features]."""
        y = super().forward(x)
        return y if self._group is None else self._group.all_reduce(y)

    def shard(self, group: TensorParallelGroup) -> None:
        """Keeps this rank's columns of W."""
        self._group = group
        part = self._split.part(group.rank, group.size)
        self.in_features = part.stop - part.start
        self.shards = {"weight": Shard(1, (part,))}
        self.weight = sharded(self.weight, self.shards["weight"])
        if group.rank:
            self.bias = None


class MergedLinear(nn.Module):
    """Linear layers side by side that read the same input, computed as one product.

    `self.qkv_proj = MergedLinear(h, {"q_proj": nq, "k_proj": nkv, "v_proj": nkv})` takes the place of three layers;
    a checkpoint's `q_proj.weight`, `k_proj.weight` and `v_proj.weight` next to it are loaded into its rows. The ranks
    of a group divide each part's outputs.

    Args:
        in_features: numbers per input row.
        parts: name -> out_features of each layer, in the order of the outputs.
        bias: whether each has a bias.
    """

    def __init__(self, in_features: int, parts: Mapping[str, int | Split], *, bias: bool = False) -> None:
        super().__init__()
        self._names = list(parts)
        self.merged = ColumnParallelLinear(in_features, list(parts.values()), bias=bias)

    @property
    def parts(self) -> dict[str, int]:
        """Name -> out_features of each layer, on this rank."""
        return dict(zip(self._names, self.merged.sizes, strict=True))

    @property
    def full_parts(self) -> dict[str, int]:
        """Name -> out_features of each layer, on all ranks together."""
        return dict(zip(self._names, self.merged.full_sizes, strict=True))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps [..., in_features] to one [..., out_features] per part."""
        product = self.merged.product
        return product.parts(x) if isinstance(product, JoinedProduct) else self.merged(x).split(self.merged.sizes, -1)

    def slots(self) -> dict[str, Tensor]:
        """Returns the rows of each part, named as in a checkpoint, e.g. `q_proj.weight`."""
        return {
            f"{part}.{name}": rows
            for name, parameter in self.merged.named_parameters()
            for part, rows in zip(self._names, parameter.detach().split(self.merged.sizes), strict=True)
        }

    @property
    def shards(self) -> dict[str, Shard]:
        """Which rows of which of these tensors this rank has; nothing where the ranks do not divide them."""
        return {
            f"{part}.{name}": Shard(0, (rows,))
            for part, rows in zip(self._names, self.merged.ranges, strict=False)
            for name in ("weight", "bias")
        }
