"""Mamba-2, a layer that keeps a state in place of keys and values.

Dao and Gu, 2024: "Transformers are SSMs". The reference implementation is transformers' `modeling_granitemoehybrid`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from typing import Any

from torch import Tensor, nn

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.layers.alive import KernelUse
from pipezoo_core.layers.linear import Linear
from pipezoo_core.recurrence import RMSNormOfGated, SelectiveScan, ShortConvolution, StateSpec

__all__ = ["Mamba2", "Mamba2Sizes"]

_SIZES = ("num_heads", "head_size", "num_groups", "state_size", "num_taps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2Sizes:
    """Sizes and switches of a `Mamba2`.

    Attributes:
        num_heads: of the recurrence.
        head_size: numbers per head.
        num_groups: of B and C; each serves as many heads in a row.
        state_size: numbers per group of B and C.
        num_taps: rows that the convolution before the recurrence sees, the row itself included.
        conv_bias: whether the convolution has a bias.
        bias: whether the layers around both have one.
        length_limits: the shortest and the longest step of the recurrence.

    Args:
        names: what the config calls the five sizes and the limits, by the names here; errors have these otherwise.

    Raises:
        UnsupportedModelError: a size is not positive or does not fit the others, or the limits are none.
    """

    num_heads: int
    head_size: int
    num_groups: int
    state_size: int
    num_taps: int
    conv_bias: bool
    bias: bool
    length_limits: tuple[float, float]
    names: InitVar[Mapping[str, str] | None] = None

    def __post_init__(self, names: Mapping[str, str] | None) -> None:
        names, sizes = names or {}, {name: getattr(self, name) for name in _SIZES}
        are_positive = all(isinstance(size, int) and size > 0 for size in sizes.values())
        if not are_positive or self.num_taps < 2 or self.num_heads % self.num_groups:
            raise UnsupportedModelError(
                "the sizes of the config's Mamba layers are not those of any model",
                found=", ".join(f"{names.get(name, name)} {size!r}" for name, size in sizes.items()),
                allowed="sizes above 0, a convolution over 2 rows or more, and as many heads for each group",
            )
        shortest, longest = self.length_limits
        if not 0 <= shortest <= longest or shortest == float("inf"):
            raise UnsupportedModelError(
                f"the config's {names.get('length_limits', 'length_limits')} is no limit of a step of its Mamba layers",
                found=repr(self.length_limits),
                allowed="a finite number from 0 on, and one that is not less",
            )

    @property
    def width(self) -> int:
        """Numbers of all heads."""
        return self.num_heads * self.head_size

    @property
    def num_channels(self) -> int:
        """Numbers of what the convolution goes over: the heads', B and C."""
        return self.width + 2 * self.num_groups * self.state_size

    @property
    def state(self) -> StateSpec:
        """What a layer keeps: the convolution's inputs, and a matrix per head."""
        return StateSpec(
            ((self.num_taps - 1, self.num_channels), (self.num_heads, self.state_size, self.head_size)),
        )


class Mamba2(nn.Module):
    """A short convolution, what its results read of a state that the layer keeps, and a gate.

    A checkpoint's `A_log`, `dt_bias` and `D` are those of `scan`, below it.

    Args:
        hidden_size: numbers per input and output row.
        sizes: of the layer.
        eps: added to the mean square in the norm.
        layer_idx: its place in the config's `layers`.
    """

    def __init__(self, hidden_size: int, sizes: Mamba2Sizes, eps: float, layer_idx: int) -> None:
        super().__init__()
        self.parts = [sizes.width, sizes.num_channels, sizes.num_heads]
        self.in_proj = Linear(hidden_size, sum(self.parts), bias=sizes.bias)
        self.conv1d = ShortConvolution(sizes.num_channels, sizes.num_taps, bias=sizes.conv_bias, activation=True)
        self.scan = SelectiveScan(
            sizes.num_heads, sizes.head_size, sizes.num_groups, sizes.state_size, sizes.length_limits
        )
        self.norm = RMSNormOfGated(sizes.width, sizes.num_groups, eps)
        self.out_proj = Linear(sizes.width, hidden_size, bias=sizes.bias)
        self.layer_idx = layer_idx

    def forward(self, x_TH: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps [T, hidden_size] to [T, hidden_size], and changes the states of the step's requests."""
        gate, xbc, dt = self.in_proj(x_TH).split(self.parts, -1)
        inputs, matrices = kv.states[self.layer_idx]
        y = self.norm(self.scan(self.conv1d(xbc, inputs, kv.state_step), dt, matrices, kv.state_step), gate)
        return self.out_proj(y)

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`. Without kernels, what the convolution and the scan compute with is float32."""
        width, channels, heads = self.parts
        if kernels.is_native:
            return [width + channels + heads, channels, width]
        wide, widened = kernels.wide, kernels.widened
        convolution = [wide * channels] * 4  # inputs and their sum, and of a tap the inputs and products
        scan = [channels, widened * channels, *[wide * width] * 3, *[wide * heads] * 2]
        return [width + channels + heads, *max(convolution, scan, key=sum)]
