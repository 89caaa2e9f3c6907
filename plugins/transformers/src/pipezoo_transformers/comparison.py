"""How a module of transformers is compared with core's layer: both compute with random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from pipezoo_core.layers import ACTIVATIONS

__all__ = ["ACTIVATION_NAMES", "INPUTS", "RandomNumbers", "is_near"]

ACTIVATION_NAMES = tuple({function: name for name, function in ACTIVATIONS.items()}.values())
"""One name of each."""
INPUTS = ((4.0, 32), (1e4, 80))
"""Size and number of the rows that a module is given. Where they are small the activation is seen, and where they are
large what is clamped; more rows may be computed in another way."""
_NEAR = 1e-9  # of the largest number, in float64


class RandomNumbers:
    """Gives tensors of random numbers in float64, in every process the same ones."""

    def __init__(self) -> None:
        self._generator = torch.Generator(device="cpu").manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        """Returns numbers that are distributed normally."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu")


def is_near(result: object, expected: Tensor) -> bool:
    """Whether a result is the expected tensor but for rounding."""
    if not isinstance(result, Tensor) or result.shape != expected.shape or result.dtype != expected.dtype:
        return False
    return bool((result - expected).abs().max() <= _NEAR * expected.abs().max())
