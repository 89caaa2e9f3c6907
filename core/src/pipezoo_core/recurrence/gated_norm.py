"""The normalizations of what a recurrence returns, of which a gate lets through as much as it says."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipezoo_core.native import NativeKernels

__all__ = ["GatedRMSNorm", "RMSNormOfGated"]


class GatedRMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + eps) · weight · silu(gate)` of each head, with the same weight for all.

    Args:
        size: numbers per head.
        eps: added to the mean.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps
        self._kernels: NativeKernels | None = None

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Maps two [T, heads · size] to the same; in float32 inside."""
        if self._kernels is not None:
            return self._kernels.gated_rms_norm(x, self.weight, gate, self.eps)
        heads = x.float().unflatten(-1, (-1, len(self.weight)))
        normalized = F.rms_norm(heads, self.weight.shape, self.weight.float(), self.eps).flatten(-2)
        return (normalized * F.silu(gate.float())).to(x.dtype)

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes with the native kernels from now on."""
        self._kernels = kernels


class RMSNormOfGated(nn.Module):
    """`u / sqrt(mean(u²) + eps) · weight` of each group, where `u = x · silu(gate)`, with a weight for each number.

    Args:
        size: numbers per row.
        num_groups: side by side in a row, each normalized by itself.
        eps: added to the mean.
    """

    def __init__(self, size: int, num_groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.num_groups = num_groups
        self.eps = eps
        self._kernels: NativeKernels | None = None

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Maps two [T, size] to the same; in float32 inside."""
        if self._kernels is not None:
            return self._kernels.gated_rms_norm(x, self.weight, gate, self.eps, self.num_groups)
        groups = (x.float() * F.silu(gate.float())).unflatten(-1, (self.num_groups, -1))
        normalized = F.rms_norm(groups, groups.shape[-1:], None, self.eps).flatten(-2)
        return (normalized * self.weight.float()).to(x.dtype)

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes with the native kernels from now on."""
        self._kernels = kernels
