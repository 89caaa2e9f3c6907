"""What the plan counts of a layer of experts is what is alive in it, whatever is largest."""

import pytest
import torch
from kernels_here import kernels, random
from nemotron.tiny_nemotron import ARCHITECTURE, TINY

from pipezoo_core.config import LinearName, SupportedEncoding
from pipezoo_core.layers import KernelUse, join_experts, use_linear_backend
from pipezoo_core.testing.tensors_alive import PeakOfTensors
from pipezoo_nemotron.config import NemotronConfig
from pipezoo_nemotron.model import NemotronMoE

ROWS = 1024
SIZES = {  # of an expert, of the one that all tokens go through, of the latent
    "experts": (160, 32, None),
    "latent": (160, 32, 128),
    "shared": (32, 480, 32),
    "behind_the_latent": (32, 32, 32),
}


def mixture_of(sizes, dtype):
    names = ("moe_intermediate_size", "moe_shared_expert_intermediate_size", "moe_latent_size")
    said = {**TINY, **dict(zip(names, sizes, strict=True))}
    config = NemotronConfig.from_huggingface(ARCHITECTURE.huggingface_config(said))
    layer = NemotronMoE(config, config.mixture).requires_grad_(requires_grad=False)
    for name, parameter in layer.named_parameters():
        parameter.data = random(*parameter.shape).to(torch.float32 if name.startswith("gate.") else dtype)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("largest", SIZES)
@torch.inference_mode()
def test_what_is_alive_in_torch(largest, dtype):
    layer, x = mixture_of(SIZES[largest], dtype), random(ROWS, 64).to(dtype)
    chosen, (_, weights) = torch.tensor([[4, 1, 2]]).expand(ROWS, 3), layer.gate(x)
    layer.gate.forward = lambda x: (chosen, weights)  # the worst case: all tokens choose the same experts
    use = KernelUse(is_native=False, fuse=False, fuse_experts=False, itemsize=dtype.itemsize)
    counted = sum(layer.alive(use)) * ROWS * dtype.itemsize
    with PeakOfTensors() as alive:
        layer(x)
    assert alive.peak / counted == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("largest", SIZES)
@torch.inference_mode()
def test_what_is_alive_with_kernels(largest):
    layer, found = mixture_of(SIZES[largest], torch.float32), kernels()
    use_linear_backend(LinearName.native, layer, torch.device("cpu"), SupportedEncoding.float32, found)
    join_experts(layer)
    use = KernelUse(is_native=True, fuse=True, fuse_experts=True, itemsize=4)
    counted = sum(layer.alive(use)) * ROWS * 4
    with PeakOfTensors() as alive:
        layer(random(ROWS, 64))
    assert alive.peak <= 1.1 * counted
