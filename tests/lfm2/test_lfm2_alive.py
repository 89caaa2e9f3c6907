"""What the plan counts of a short convolution in torch is what is alive in it."""

from types import SimpleNamespace

import pytest
import torch
from core.state_steps import step_of
from kernels_here import needs_kernels, random

from pipezoo_core.config import PipelineConfig
from pipezoo_core.layers import KernelUse
from pipezoo_core.testing.tensors_alive import PeakOfTensors
from pipezoo_lfm2.model import Lfm2ShortConvolution
from pipezoo_lfm2.plugin import pipezoo_architectures

ROWS, SIZE = 512, 256


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_alive_in_a_short_convolution(dtype):
    layer = Lfm2ShortConvolution(SimpleNamespace(hidden_size=SIZE, conv_bias=False, num_taps=3), 0).to(dtype)
    use = KernelUse(is_native=False, fuse=False, fuse_experts=False, itemsize=dtype.itemsize)
    kv = SimpleNamespace(states=[(random(1, 2, SIZE),)], state_step=step_of([ROWS], [-1], [0]))
    x = random(ROWS, SIZE).to(dtype)
    with torch.no_grad(), PeakOfTensors() as alive:
        layer(x, None, kv)
    assert alive.peak / (sum(layer.alive(use)) * ROWS * dtype.itemsize) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("num_taps", [1, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_alive_of_the_states_of_many_requests(dtype, length, num_taps):
    layer = Lfm2ShortConvolution(SimpleNamespace(hidden_size=SIZE, conv_bias=False, num_taps=num_taps), 0).to(dtype)
    use = KernelUse(is_native=False, fuse=False, fuse_experts=False, itemsize=dtype.itemsize)
    num_requests = ROWS // length
    states, slots = random(num_requests, num_taps - 1, SIZE), [*range(num_requests)]
    kv = SimpleNamespace(states=[(states,)], state_step=step_of([length] * num_requests, slots, slots))
    x = random(ROWS, SIZE).to(dtype)
    with torch.no_grad(), PeakOfTensors() as alive:
        layer(x, None, kv)
    counted = sum(layer.alive(use)) * ROWS * dtype.itemsize + layer.conv.working_memory(ROWS, num_requests)
    assert alive.peak / counted == pytest.approx(1, abs=0.03)


def planned(**settings):
    values = {"hidden_size": SIZE, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}
    config = {**values, "conv_L_cache": 4, "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
    pipeline_config = PipelineConfig(model_path="", device="cpu", encoding="float32", max_batch_tokens=ROWS, **settings)
    served = pipezoo_architectures()[0]
    return served.pipeline_model.estimate_activation_memory(pipeline_config, served.huggingface_config(config))


def test_what_requests_add_to_the_plan():
    """Of torch's convolution their states' inputs, beside two rows of logits each; a tenth is for holes."""
    added = [planned(linear="torch", attention="paged", max_batch_size=count) for count in (9, 64)]
    assert (added[1] - added[0]) / 1.1 == pytest.approx(55 * (3 * SIZE + 2 * 100) * 4, abs=2)


@needs_kernels
def test_what_long_decodes_add_to_the_plan():
    """A result for each head of each piece, of 256 keys."""
    added = [planned(max_batch_size=8, max_length=length) for length in (256, 2048)]
    assert added[1] - added[0] == 8 * 8 * 4 * (SIZE // 4 + 2) * 4
