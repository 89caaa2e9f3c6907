"""Normalization layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipezoo_core.native import NativeKernels

__all__ = ["RMSNorm"]


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
