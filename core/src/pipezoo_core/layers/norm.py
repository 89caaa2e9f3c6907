"""Normalization layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.layers.split import Shard, Split, as_split, sharded
from pipezoo_core.native import NativeKernels

__all__ = ["ParallelLayerNorm", "RMSNorm"]


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + eps) · weight` over the last dimension (Zhang and Sennrich, 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps
        self._kernels: NativeKernels | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., size] to [..., size]."""
        if self._kernels is None:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self._kernels.rms_norm(x, self.weight, self.eps)

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes with the native kernels from now on."""
        self._kernels = kernels


class ParallelLayerNorm(nn.LayerNorm):
    """A LayerNorm (Ba et al., 2016) over a dimension that the ranks of a group divide.

    Args:
        size: of the dimension.
        eps: added to the variance.
        bias: whether there is one.
    """

    def __init__(self, size: int | Split, eps: float, *, bias: bool) -> None:
        self._split = as_split(size)
        super().__init__(self._split.size, eps, bias=bias)
        self.shards: dict[str, Shard] = {}
        self._group: TensorParallelGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [T, this rank's part] to the same, by mean and variance of all ranks' parts."""
        if self._group is None:
            return super().forward(x)
        wide = x.double()  # squares are summed before the mean is known
        sums_T2 = self._group.all_reduce(torch.stack((wide.sum(-1), wide.square().sum(-1)), dim=-1))
        mean, mean_square = (sums_T2 / self._num_summed).unsqueeze(-1).unbind(-2)
        scale = (mean_square - mean.square()).clamp(min=0).add(self.eps).rsqrt()
        y = ((wide - mean) * scale).to(x.dtype) * self.weight
        return y if self.bias is None else y + self.bias

    def shard(self, group: TensorParallelGroup) -> None:
        """Keeps this rank's part of weight and bias."""
        self._group = group
        self._num_summed = sum(self._split.sizes(group.size))  # more than there are, where ranks have the same heads
        shard = Shard(0, (self._split.part(group.rank, group.size),))
        self.shards = dict.fromkeys(("weight", "bias"), shard)
        self.weight = sharded(self.weight, shard)
        if self.bias is not None:
            self.bias = sharded(self.bias, shard)
        self.normalized_shape = tuple(self.weight.shape)
