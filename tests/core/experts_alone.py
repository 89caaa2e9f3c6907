"""Experts with random weights, what they are given, and their native kernels."""

import pytest
import torch

from pipezoo_core.config import LinearName, SupportedEncoding
from pipezoo_core.layers import Experts, Routing, join_experts, use_linear_backend
from pipezoo_core.native import NativeKernels

CPU = torch.device("cpu")


def random_experts(hidden, inner, num_experts, top_k, activation="silu", gated=True):
    experts = Experts(hidden, inner, num_experts, top_k, activation, gated=gated)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    return experts


def rows_and_choices(num_rows, hidden, num_experts, top_k):
    """Returns rows, and for each the experts and their weights."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(num_rows, num_experts, generator=generator)
    return torch.randn(num_rows, hidden, generator=generator), Routing(num_experts=num_experts, top_k=top_k)(logits)


def skip_without_kernels():
    if obstacle := NativeKernels(CPU, torch.float32).obstacle:
        pytest.skip(obstacle)


def use_native(module, dtype, **options):
    skip_without_kernels()
    kernels = NativeKernels(CPU, dtype)
    use_linear_backend(LinearName.native, module, CPU, SupportedEncoding(str(dtype)[6:]), kernels, **options)
    join_experts(module)
