"""The gated feed-forward layer of Llama-like models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from pipezoo_core.layers.linear import Linear, MergedLinear

__all__ = ["GatedMLP"]


class GatedMLP(nn.Module):
    """`down(act(gate(x)) · up(x))`, a gated linear unit (Shazeer, 2020).

    Args:
        hidden_size: numbers per input and output row.
        intermediate_size: numbers per row in between.
        activation: a name that Hugging Face configs use, e.g. `silu`.
        bias: whether the three linears have one.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, *, bias: bool = False) -> None:
        super().__init__()
        parts = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        self.gate_up_proj = MergedLinear(hidden_size, parts, bias=bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=bias)
        self.activation_name = activation
        self.activation: nn.Module = ACT2FN[activation]
        self._kernel: Callable[..., Any] | None = None

    def forward(self, x_TH: Tensor) -> Tensor:
        """Maps [T, hidden_size] to [T, hidden_size]."""
        if self._kernel is None:
            gate, up = self.gate_up_proj(x_TH)
            return self.down_proj(self.activation(gate) * up)
        gate_up = self.gate_up_proj.merged(x_TH)
        rows, size = len(gate_up), gate_up.shape[-1] // 2
        gated = torch.empty(rows, size, dtype=gate_up.dtype)
        self._kernel(gate_up.data_ptr(), gated.data_ptr(), rows, size)
        return self.down_proj(gated)

    def compute_with(self, kernel: Callable[..., Any]) -> None:
        """Computes `silu(gate) · up` with the native kernel `silu_multiply` from now on."""
        self._kernel = kernel
