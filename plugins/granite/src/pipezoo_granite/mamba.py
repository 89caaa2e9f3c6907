"""The sizes of Granite's layers that keep a state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from transformers import PretrainedConfig

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.recurrence import StateSpec

__all__ = ["MambaSizes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaSizes:
    """Sizes and switches of a Mamba-2.

    Attributes:
        num_heads: of the recurrence.
        head_size: numbers per head.
        num_groups: of B and C; each serves as many heads in a row.
        state_size: numbers per group of B and C.
        num_taps: rows that the convolution before the recurrence sees, the row itself included.
        conv_bias: whether the convolution has a bias.
        bias: whether the layers around both have one.
        length_limits: the shortest and the longest step of the recurrence.
    """

    num_heads: int
    head_size: int
    num_groups: int
    state_size: int
    num_taps: int
    conv_bias: bool
    bias: bool
    length_limits: tuple[float, float]

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        """Reads a `GraniteHuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: a size is not positive or does not fit the others, or the limits are none.
        """
        heads, groups, expand = config.mamba_n_heads, config.mamba_n_groups, config.mamba_expand
        state_size, num_taps, head_size = config.mamba_d_state, config.mamba_d_conv, config.mamba_d_head
        sizes = (heads, groups, expand, state_size, num_taps)
        if not all(isinstance(size, int) and size > 0 for size in sizes) or num_taps < 2 or heads % groups:
            raise UnsupportedModelError(
                "the sizes of the config's Mamba layers are not those of any model",
                found=f"mamba_n_heads {heads}, mamba_n_groups {groups}, mamba_expand {expand}, mamba_d_state "
                f"{state_size}, mamba_d_conv {num_taps}",
                allowed="sizes above 0, a convolution over 2 rows or more, and as many heads for each group",
            )
        width = expand * config.hidden_size
        if head_size == "auto":
            head_size = width // heads
        if not isinstance(head_size, int) or head_size * heads != width:
            raise UnsupportedModelError(
                "the heads of the config's Mamba layers do not fit their width",
                found=f"{heads} heads, mamba_d_head {head_size!r}, {width} numbers",
                allowed="heads that are the whole width together",
            )
        return cls(
            num_heads=heads,
            head_size=head_size,
            num_groups=groups,
            state_size=state_size,
            num_taps=num_taps,
            conv_bias=bool(config.mamba_conv_bias),
            bias=bool(config.mamba_proj_bias),
            length_limits=_limits(config),
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


def _limits(config: PretrainedConfig) -> tuple[float, float]:
    found = config.time_step_limit
    if found is None or len(found) != 2 or not 0 <= found[0] <= found[1] or math.isinf(found[0]):
        raise UnsupportedModelError(
            "the config's time_step_limit is none",
            found=repr(found),
            allowed="a finite number from 0 on, and one that is not less",
        )
    return float(found[0]), float(found[1])
