"""The kernels of this machine's CPU, and numbers for them."""

import pytest
import torch

from pipezoo_core.native import NativeKernels

__all__ = ["kernels", "random"]


def kernels(dtype=torch.float32):
    """Returns the kernels of a dtype; the test is skipped where they are not to be had."""
    found = NativeKernels(torch.device("cpu"), dtype)
    if found.obstacle:
        pytest.skip(found.obstacle)
    return found


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
