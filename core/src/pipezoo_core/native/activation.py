"""The activation functions that the kernels have."""

from __future__ import annotations

import enum

__all__ = ["Activation"]


class Activation(enum.IntEnum):
    """What is computed number by number: `Activation` in the kernels' activations.h.

    Attributes:
        clamped: `layers.ClampedGate()`, of a gate alone.
    """

    silu = 0
    gelu = 1
    gelu_tanh = 2
    relu = 3
    relu2 = 4
    sigmoid = 5
    tanh = 6
    quick_gelu = 7
    clamped = 8
