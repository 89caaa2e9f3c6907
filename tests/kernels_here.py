"""The kernels of this machine's CPU, and numbers for them."""

import pytest
import torch

from pipezoo_core.layers.quantized import GROUP
from pipezoo_core.native import NativeKernels

__all__ = ["kernels", "needs_kernels", "random", "rounded_rows"]

needs_kernels = pytest.mark.skipif(
    NativeKernels(torch.device("cpu"), torch.float32).obstacle is not None, reason="pipezoo-kernels cannot be used here"
)


def kernels(dtype=torch.float32):
    """Returns the kernels of a dtype; the test is skipped where they are not to be had."""
    found = NativeKernels(torch.device("cpu"), dtype)
    if found.obstacle:
        pytest.skip(found.obstacle)
    return found


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded_rows(x):
    """A row's numbers in 8 bits per group, as the kernels round them: in float32, so that ties fall the same way."""
    groups = x.float().unflatten(-1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    values = (groups * torch.where(scale > 0, 1 / scale, 0)).round()
    return (values.double() * scale).flatten(-2)
