"""What the plan counts of a Mamba layer, and of its adapters, is what is alive in it, whatever is largest."""

from types import SimpleNamespace

import pytest
import torch
from core.state_steps import step_of
from granite.tiny_granite import ARCHITECTURE
from kernels_here import kernels, random

from pipezoo_core.config import LinearName, LoRAConfig, PipelineConfig, SupportedEncoding
from pipezoo_core.layers import KernelUse, Mamba2, use_linear_backend
from pipezoo_core.lora import LoRABatch, LoRAGroup, LoRALayer
from pipezoo_core.testing.tensors_alive import PeakOfTensors
from pipezoo_granite.config import GraniteConfig

ROWS = 4096  # many, so that what a chunk of 64 takes by itself is little
HIDDEN = 64
SIZES = {  # groups, numbers of a group, heads
    "convolution": (2, 48, 8),
    "scan": (1, 4, 8),
}


def mamba_of(sizes, dtype):
    names = ("mamba_n_groups", "mamba_d_state", "mamba_n_heads")
    said = {"hidden_size": HIDDEN, "num_hidden_layers": 1, **dict(zip(names, sizes, strict=True))}
    config = GraniteConfig.from_huggingface(ARCHITECTURE.huggingface_config(said))
    layer = Mamba2(HIDDEN, config.mamba, config.rms_norm_eps, 0).requires_grad_(requires_grad=False)
    for name, parameter in layer.named_parameters():
        is_kept = name.removeprefix("scan.") in layer.scan.keeps_float32
        parameter.data = random(*parameter.shape).to(torch.float32 if is_kept else dtype)
    states = tuple(random(2, *shape) for shape in config.mamba.state.shapes)
    return layer, SimpleNamespace(states=[states], state_step=step_of([ROWS - 300, 300], [-1, 1], [0, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("largest", SIZES)
def test_what_is_alive_in_torch(largest, dtype):
    layer, kv = mamba_of(SIZES[largest], dtype)
    use = KernelUse(is_native=False, fuse=False, fuse_experts=False, itemsize=dtype.itemsize)
    counted, x = sum(layer.alive(use)) * ROWS * dtype.itemsize, random(ROWS, HIDDEN).to(dtype)
    with torch.no_grad(), PeakOfTensors() as alive:  # in inference mode what a norm is made of is not seen
        layer(x, kv)
    assert alive.peak / counted == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("largest", SIZES)
@torch.inference_mode()
def test_what_is_alive_with_kernels(largest):
    """By the pieces of memory that serve its results, the last of which takes a place that is free again by then."""
    layer, kv = mamba_of(SIZES[largest], torch.float32)
    found = kernels()
    use_linear_backend(LinearName.native, layer, torch.device("cpu"), SupportedEncoding.float32, found)
    use = KernelUse(is_native=True, fuse=True, fuse_experts=True, itemsize=4)
    layer(random(ROWS, HIDDEN), kv)
    pieces, numbers = (len(piece) for piece, _ in found._pool._pieces), sum(layer.alive(use))
    assert sum(pieces) == pytest.approx(4 * ROWS * numbers, rel=0.01)


@torch.inference_mode()
def test_what_an_adapter_adds_to_the_widest_layer():
    """Which is none of the feed-forward layer's."""
    said = {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2, "shared_intermediate_size": 16}
    config = ARCHITECTURE.huggingface_config(
        {"hidden_size": HIDDEN, "num_attention_heads": 2, "num_local_experts": 0, "mamba_n_heads": 8, **said}
    )
    settings = PipelineConfig(model_path="", device="cpu", encoding="float32", linear="torch", max_batch_tokens=ROWS)
    adapted = settings.updated(lora=LoRAConfig(max_num_loras=1, max_lora_rank=1))
    counted, without = (
        ARCHITECTURE.pipeline_model.estimate_activation_memory(each, config) for each in (adapted, settings)
    )
    sizes = GraniteConfig.from_huggingface(config).mamba
    width, cpu = sizes.width + sizes.num_channels + sizes.num_heads, torch.device("cpu")
    batch = LoRABatch([LoRAGroup(0, 1, torch.arange(ROWS))], ROWS)
    layer = LoRALayer(batch, HIDDEN, {"in": width}, num_slots=1, max_rank=1, device=cpu, dtype=torch.float32)
    layer.fill(0, "in", random(1, HIDDEN), random(width, 1))
    x, y = random(ROWS, HIDDEN), random(ROWS, width)
    with PeakOfTensors() as alive:
        layer.add(x, y)
    assert alive.peak <= counted - without <= 1.2 * alive.peak
