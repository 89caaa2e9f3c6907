"""What the plan counts of a short convolution in torch is what is alive in it."""

from types import SimpleNamespace

import pytest
import torch
from core.state_steps import step_of
from kernels_here import random

from pipezoo_core.layers import KernelUse
from pipezoo_core.testing.tensors_alive import PeakOfTensors
from pipezoo_lfm2.model import Lfm2ShortConvolution

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
