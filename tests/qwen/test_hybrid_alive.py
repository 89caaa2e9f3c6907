"""What the plan counts of the layers of a hybrid Qwen in torch is what is alive in them, whatever is largest."""

from types import SimpleNamespace

import pytest
import torch
from core.state_steps import step_of
from kernels_here import kernels, random
from qwen.tiny_hybrid import ARCHITECTURES

from pipezoo_core.config import LinearName, SupportedEncoding
from pipezoo_core.layers import KernelUse, use_linear_backend
from pipezoo_core.testing.tensors_alive import PeakOfTensors
from pipezoo_qwen.hybrid import model
from pipezoo_qwen.hybrid.config import QwenHybridConfig

ROWS = 4096  # many, so that what a chunk of 64 takes by itself is little
SIZES = {
    "convolution": (4, 8, 32, 32),
    "repeated_keys": (1, 16, 64, 4),
    "wide_values": (1, 8, 4, 32),
}


def config_of(**said):
    values = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 8, "head_dim": 64, **said}
    return QwenHybridConfig.from_huggingface(ARCHITECTURES["qwen3_5_text"].huggingface_config(values))


def share_alive(layer, kv, dtype):
    """Returns how much of what the layer says is alive in it at most."""
    for parameter in layer.parameters():
        parameter.data = random(*parameter.shape).to(dtype)
    use = KernelUse(is_native=False, fuse=False, fuse_experts=False, itemsize=dtype.itemsize)
    counted, x = sum(layer.alive(use)) * ROWS * dtype.itemsize, random(ROWS, 64).to(dtype)
    with torch.no_grad(), PeakOfTensors() as alive:  # in inference mode what a norm is made of is not seen
        layer(x, None, kv)
    return alive.peak / counted


def delta_net_of(sizes):
    names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
    config = config_of(**{f"linear_{name}": size for name, size in zip(names, sizes, strict=True)})
    states = tuple(random(2, *shape) for shape in config.delta_net.state.shapes)
    step = step_of([ROWS - 300, 300], [-1, 1], [0, 1])
    return model.GatedDeltaNet(config, 0), SimpleNamespace(states=[states], state_step=step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("largest", SIZES)
def test_what_is_alive_in_a_delta_net(largest, dtype):
    assert share_alive(*delta_net_of(SIZES[largest]), dtype) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("largest", SIZES)
@torch.inference_mode()
def test_what_is_alive_with_kernels(largest):
    """By the pieces of memory that serve its results, the last of which takes a place that is free again by then."""
    layer, kv = delta_net_of(SIZES[largest])
    for parameter in layer.parameters():
        parameter.data = random(*parameter.shape)
        parameter.requires_grad_(requires_grad=False)
    found = kernels()
    use_linear_backend(LinearName.native, layer, torch.device("cpu"), SupportedEncoding.float32, found)
    use = KernelUse(is_native=True, fuse=True, fuse_experts=True, itemsize=4)
    layer(random(ROWS, 64), None, kv)
    pieces, numbers = (len(piece) for piece, _ in found._pool._pieces), sum(layer.alive(use))
    assert sum(pieces) == pytest.approx(4 * ROWS * numbers, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_kv_heads", [1, 8])
def test_what_is_alive_in_gated_attention(num_kv_heads, dtype, monkeypatch):
    """Without what the attention's backend takes, which the plan counts by itself."""
    monkeypatch.setattr(model, "Attention", lambda layer_idx, backends: lambda q, *others: torch.empty_like(q))
    layer = model.GatedAttention(config_of(num_key_value_heads=num_kv_heads), 3, None)
    assert share_alive(layer, None, dtype) == pytest.approx(1, abs=0.02)
