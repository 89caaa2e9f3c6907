"""The feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pipezoo_core.layers.activations import ACTIVATIONS, ClampedGate, native_activation
from pipezoo_core.layers.alive import KernelUse
from pipezoo_core.layers.linear import ColumnParallelLinear, MergedLinear, Product, RowParallelLinear
from pipezoo_core.native import GATE, NativeKernels

__all__ = ["MLP", "GatedMLP"]


class MLP(nn.Module):
    """`down(act(up(x)))`.

    Checkpoints call the two linears by many names, and so does the module: `MLP(h, i, "gelu", names=("fc1", "fc2"))`
    has a `fc1` and a `fc2`.

    Args:
        hidden_size: numbers per input and output row.
        intermediate_size: numbers per row in between.
        activation: a name of `ACTIVATIONS`, e.g. `gelu_new`.
        names: of the two linears.
        bias: whether they have one.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        *,
        names: Sequence[str] = ("up_proj", "down_proj"),
        bias: bool = False,
    ) -> None:
        super().__init__()
        self._up, self._down = names
        self.add_module(self._up, ColumnParallelLinear(hidden_size, intermediate_size, bias=bias))
        self.add_module(self._down, RowParallelLinear(intermediate_size, hidden_size, bias=bias))
        self.activation = ACTIVATIONS[activation]
        self.native_activation = native_activation(activation)
        self._kernels: NativeKernels | None = None

    def forward(self, x_TH: Tensor) -> Tensor:
        """Maps [T, hidden_size] to [T, hidden_size]."""
        x_TI: Tensor = self.get_submodule(self._up)(x_TH)
        if self._kernels is None or self.native_activation is None:
            x_TI = self.activation(x_TI)
        else:
            x_TI = self._kernels.activate(x_TI, self.native_activation)
        y_TH: Tensor = self.get_submodule(self._down)(x_TI)
        return y_TH

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        down = self.get_submodule(self._down)
        assert isinstance(down, RowParallelLinear)
        hidden, inner = down.out_features, down.in_features
        if kernels.is_native and self.native_activation is not None:
            return [inner, max(inner, hidden), *down.reordered]
        return max([inner] * 3, [inner, hidden], key=sum)  # an activation may be made of several operations

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes the activation with the native kernels from now on, where they have it."""
        self._kernels = kernels


class GatedMLP(nn.Module):
    """`down(act(gate(x)) · up(x))`, a gated linear unit (Shazeer, 2020).

    Args:
        hidden_size: numbers per input and output row.
        intermediate_size: numbers per row in between.
        activation: a name of `ACTIVATIONS`, e.g. `silu`; or what becomes of gate and up together.
        bias: whether the three linears have one.
    """

    def __init__(
        self, hidden_size: int, intermediate_size: int, activation: str | ClampedGate, *, bias: bool = False
    ) -> None:
        super().__init__()
        parts = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
        self.gate_up_proj = MergedLinear(hidden_size, parts, bias=bias)
        self.down_proj = RowParallelLinear(intermediate_size, hidden_size, bias=bias)
        self.activation = activation if isinstance(activation, ClampedGate) else ACTIVATIONS[activation]
        self.native_activation = native_activation(activation)
        self._kernels: NativeKernels | None = None
        self._gated: Callable[[Tensor], Tensor] | None = None

    def forward(self, x_TH: Tensor) -> Tensor:
        """Maps [T, hidden_size] to [T, hidden_size]."""
        if self._gated is not None:
            return self.down_proj(self._gated(x_TH))
        if self._kernels is None or self.native_activation is None:
            parts = self.gate_up_proj(x_TH)
            gate, up = parts if len(parts) == 2 else parts[0].chunk(2, dim=-1)  # one in the fallback, of a fused weight
            return self.down_proj(self._let_through(gate, up))
        return self.down_proj(self._kernels.gated(self.gate_up_proj.merged(x_TH), self.native_activation))

    def _let_through(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.activation(gate, up) if isinstance(self.activation, ClampedGate) else self.activation(gate) * up

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        hidden, inner = self.down_proj.out_features, self.down_proj.in_features
        gate_up = [2 * inner] if len(self.gate_up_proj.merged.stored) < 2 else [inner, inner]
        if not kernels.is_native or self.native_activation is None:
            computed = [inner] * (3 if isinstance(self.activation, ClampedGate) else 2)
            return [*gate_up, *max(computed, [inner, hidden], key=sum)]  # while the last product is made, all are there
        if kernels.fuse and self.can_be_gated:
            copies = self.gate_up_proj.merged.reordered + self.down_proj.reordered  # one after the other
            return [inner, hidden] + ([max(copies)] if copies else [])
        return [2 * inner, inner] if len(gate_up) == 1 else [2 * inner, *gate_up]  # which are put side by side

    @property
    def products(self) -> tuple[Callable[[Tensor], Tensor] | None, Callable[[Tensor], Tensor] | None]:
        """What computes `act(gate(x)) · up(x)`, and what the last layer, where it is not torch."""
        return self._gated, self.down_proj.product

    @property
    def can_be_gated(self) -> bool:
        """Whether the native kernels can make gate, activation and product with `up` one."""
        merged = self.gate_up_proj.merged
        is_even = merged.out_features % (2 * GATE) == 0 and merged.in_features % 2 == 0
        return self.native_activation is not None and is_even and len(merged.stored) < 2

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes `act(gate) · up` with the native kernels from now on, where they have the activation."""
        self._kernels = kernels

    def gate_with(self, gated: Product) -> None:
        """Computes `act(gate(x)) · up(x)` with `gated` from now on, which holds the weights in a form of its own."""
        self._gated = gated
        self.gate_up_proj.merged.compute_with(gated)  # the layer is in a cycle: its memory would wait for the collector
        del self.gate_up_proj
