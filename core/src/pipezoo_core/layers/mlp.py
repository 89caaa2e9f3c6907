"""The gated feed-forward layer of Llama-like models."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pipezoo_core.layers.activations import ACTIVATIONS, SILU
from pipezoo_core.layers.linear import MergedLinear, RowParallelLinear
from pipezoo_core.native import GATE, NativeKernels

__all__ = ["GatedMLP"]


class GatedMLP(nn.Module):
    """`down(act(gate(x)) · up(x))`, a gated linear unit (Shazeer, 2020).

    Args:
        hidden_size: numbers per input and output row.
        intermediate_size: numbers per row in between.
        activation: a name of `ACTIVATIONS`, e.g. `silu`.
        bias: whether the three linears have one.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, *, bias: bool = False) -> None:
        super().__init__()
        parts = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        self.gate_up_proj = MergedLinear(hidden_size, parts, bias=bias)
        self.down_proj = RowParallelLinear(intermediate_size, hidden_size, bias=bias)
        self.activation_name = activation
        self.activation = ACTIVATIONS[activation]
        self._kernels: NativeKernels | None = None
        self._gated: Callable[[Tensor], Tensor] | None = None

    def forward(self, x_TH: Tensor) -> Tensor:
        """Maps [T, hidden_size] to [T, hidden_size]."""
        if self._gated is not None:
            return self.down_proj(self._gated(x_TH))
        if self._kernels is None:
            gate, up = self.gate_up_proj(x_TH)
            return self.down_proj(self.activation(gate) * up)
        return self.down_proj(self._kernels.silu_multiply(self.gate_up_proj.merged(x_TH)))

    def alive(self, *, is_native: bool, fuse: bool) -> list[int]:
        """Returns the tensors that are alive together, by their numbers per row, the result's included.

        Args:
            is_native: whether the native kernels compute it.
            fuse: see `use_linear_backend`.
        """
        hidden, inner = self.down_proj.weight.shape
        if not is_native or self.activation_name not in SILU:
            return [2 * inner, inner, inner]
        return [inner, hidden] if fuse and self.can_be_gated else [2 * inner, inner]

    @property
    def can_be_gated(self) -> bool:
        """Whether the native kernels can make gate, activation and product with `up` one."""
        size, in_features = self.gate_up_proj.merged.weight.shape
        return self.activation_name in SILU and size % (2 * GATE) == 0 and in_features % 2 == 0

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes `act(gate) · up` with the native kernels from now on, where they have the activation."""
        if self.activation_name in SILU:
            self._kernels = kernels

    def gate_with(self, gated: Callable[[Tensor], Tensor]) -> None:
        """Computes `act(gate(x)) · up(x)` with `gated` from now on, which holds the weights in a form of its own."""
        self._gated = gated
        del self.gate_up_proj.merged.weight  # the layer is in a cycle: its memory would wait for the collector
        del self.gate_up_proj
