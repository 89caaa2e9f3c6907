"""Normalization layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.layers.split import Shard, Split, as_split, sharded
from pipezoo_core.native import NativeKernels

__all__ = ["HeadNorm", "LayerNorm", "ParallelLayerNorm", "ParallelRMSNorm", "RMSNorm"]


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + eps) · (weight + offset)` over the last dimension (Zhang and Sennrich, 2019).

    Args:
        size: of the dimension.
        eps: added to the mean.
        offset: 1 for checkpoints whose weights are what is to be added to 1, as Gemma's. The sum is float32, whatever
            the weight is.
    """

    def __init__(self, size: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.offset = offset
        self._kernels: NativeKernels | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., size] to [..., size]."""
        if self._kernels is not None:
            return self._kernels.rms_norm(x, self.weight, self.eps, self.offset)
        if not self.offset:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float() + self.offset, self.eps).to(x.dtype)

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes with the native kernels from now on."""
        self._kernels = kernels


class HeadNorm(RMSNorm):
    """An `RMSNorm` of each head, with the same weight for all."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps [T, heads · size] to the same."""
        return super().forward(x.unflatten(-1, (-1, self.weight.shape[0]))).flatten(-2)


class LayerNorm(nn.Module):
    """`(x - mean(x)) / sqrt(variance(x) + eps) · weight + bias` over the last dimension (Ba et al., 2016).

    Args:
        size: of the dimension.
        eps: added to the variance.
        weight: whether there is one.
        bias: whether there is one.
    """

    def __init__(self, size: int, eps: float, *, weight: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size)) if weight else None
        self.bias = nn.Parameter(torch.empty(size)) if bias else None
        self._kernels: NativeKernels | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., size] to [..., size]."""
        if self._kernels is None:
            return F.layer_norm(x, (self.size,), self.weight, self.bias, self.eps)
        return self._kernels.layer_norm(x, self.weight, self.bias, self.eps, self.size)

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes with the native kernels from now on."""
        self._kernels = kernels


class ParallelRMSNorm(RMSNorm):
    """An `RMSNorm` over a dimension that the ranks of a group divide, such as all queries (OLMo-2).

    Args:
        size: of the dimension.
        eps: added to the mean.
    """

    def __init__(self, size: int | Split, eps: float) -> None:
        self._split = as_split(size)
        super().__init__(self._split.size, eps)
        self.shards: dict[str, Shard] = {}
        self._group: TensorParallelGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [T, this rank's part] to the same, by the mean of all ranks' parts."""
        if self._group is None:
            return super().forward(x)
        wide = x.double()  # as exact as one rank's sum, however many ranks add theirs
        sums_T1 = self._group.all_reduce(wide.square().sum(-1, keepdim=True))
        scale = (sums_T1 / self._num_summed + self.eps).rsqrt()
        return (wide * scale * self.weight.double()).to(x.dtype)

    def shard(self, group: TensorParallelGroup) -> None:
        """Keeps this rank's part of the weight."""
        self._group = group
        self._num_summed = sum(self._split.sizes(group.size))  # more than there are, where ranks have the same heads
        self.shards = {"weight": Shard(0, (self._split.part(group.rank, group.size),))}
        self.weight = sharded(self.weight, self.shards["weight"])


class ParallelLayerNorm(LayerNorm):
    """A `LayerNorm` over a dimension that the ranks of a group divide.

    Args:
        size: of the dimension.
        eps: added to the variance.
        bias: whether there is one.
    """

    weight: nn.Parameter

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
        self.shards = {"weight": shard}
        self.weight = sharded(self.weight, shard)
        if self.bias is not None:
            self.shards["bias"] = shard
            self.bias = sharded(self.bias, shard)
