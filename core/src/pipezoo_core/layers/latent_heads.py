"""The matrices of multi-head latent attention that make each head's keys and values (DeepSeek-V2, section 2.1).

Shape suffixes: T tokens of all requests in a row, N heads, K numbers per head of keys, V of values, L latent size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.layers.split import Heads, Shard, sharded
from pipezoo_core.native import PANEL, NativeKernels, Packing

__all__ = ["LatentHeads"]

Add = Callable[[Tensor, Tensor], None]
"""Adds to the second tensor, in place, what is made of the first."""


class LatentHeads(nn.Module):
    """The matrices that make each head's keys and values of a latent, and are never applied to it.

    As q·(K c) is (Kᵀq)·c, the queries are brought to the latents instead, and the sums of latents to values: the cache
    holds latents, and nothing is made of them (DeepSeek-V2, appendix C).

    Args:
        heads: which ranks divide; each has a latent of its own from all of them.
        key_dim: numbers per head of the keys that are made so.
        value_dim: numbers per head of values.
        latent_size: numbers per token of the latent.

    Attributes:
        weight: [N · (K + V), L], each head's keys and then its values, as in a checkpoint. Not quantized;
            gone when the native kernels have packed it.
        sizes: K and V.
        in_features: L.
        out_features: N · (K + V), of this rank.
        full_shape: of all of the weight.
        shards: this rank's heads.
    """

    def __init__(self, heads: Heads, key_dim: int, value_dim: int, latent_size: int) -> None:
        super().__init__()
        self._heads = heads
        self.sizes = (key_dim, value_dim)
        self.in_features, self.out_features = latent_size, heads.num_heads * sum(self.sizes)
        self.full_shape = (self.out_features, self.in_features)
        self.weight = nn.Parameter(torch.empty(self.full_shape))
        self.shards: dict[str, Shard] = {}
        self._kernels: NativeKernels | None = None
        self._packed: tuple[Tensor, Tensor] | None = None
        self._adders: tuple[Add, Add] | None = None

    def queries(self, q_TNK: Tensor) -> Tensor:
        """Maps [T, N, K] to [T, N, L], which the latents are multiplied with in place of the keys."""
        y_TNL = self._multiplied(q_TNK, of_values=False)
        if self._adders is not None:
            self._adders[0](q_TNK, y_TNL)
        return y_TNL

    def values(self, sums_TNL: Tensor) -> Tensor:
        """Maps weighted sums of latents, [T, N, L], to those of values, [T, N, V]."""
        y_TNV = self._multiplied(sums_TNL, of_values=True)
        if self._adders is not None:
            self._adders[1](sums_TNL, y_TNV)
        return y_TNV

    def _multiplied(self, x: Tensor, *, of_values: bool) -> Tensor:
        if self._kernels is not None and self._packed is not None:
            shape = (self.sizes[1], self.in_features) if of_values else (self.in_features, self.sizes[0])
            return self._kernels.multiply_heads(x, self._packed[of_values], shape)
        return torch.bmm(x.transpose(0, 1), self._matrices()[of_values].transpose(1, 2)).transpose(0, 1)

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """Returns what queries and sums are multiplied with, [N, L, K] and [N, V, L]."""
        keys_NKL, values_NVL = self.weight.unflatten(0, (-1, sum(self.sizes))).split(self.sizes, dim=1)
        return keys_NKL.transpose(1, 2), values_NVL

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes with the native kernels from now on, and lets go of the plain weight.

        They take L and V that are multiples of `PANEL`, and an even K. Others stay in torch.
        """
        key_dim, value_dim = self.sizes
        if self.in_features % PANEL or value_dim % PANEL or key_dim % 2:
            return
        keys, values = (_packed(kernels, matrix.detach()) for matrix in self._matrices())
        self._kernels, self._packed = kernels, (keys, values)
        del self.weight

    def add_to_products(self, add_to_queries: Add, add_to_values: Add) -> None:
        """Calls `add(x, y)` after every product from now on, which adds to y in place: see `queries` and `values`."""
        self._adders = (add_to_queries, add_to_values)

    def shard(self, group: TensorParallelGroup) -> None:
        """Keeps this rank's heads."""
        heads, _ = self._heads.part(group.rank, group.size)
        rows = slice(heads.start * sum(self.sizes), heads.stop * sum(self.sizes))
        self.out_features = rows.stop - rows.start
        self.shards = {"weight": Shard(0, (rows,))}
        self.weight = sharded(self.weight, self.shards["weight"])


def _packed(kernels: NativeKernels, heads: Tensor) -> Tensor:
    """Returns the matrices of heads, one below the other, as the kernels read them."""
    matrix = heads.to(kernels.dtype).reshape(-1, heads.shape[2])
    packed = kernels.pack(matrix)
    kernels.check_packed(packed, None, (matrix.shape[0], matrix.shape[1]), Packing.none)
    return packed
