"""The short convolution against torch's own, however the rows come in chunks and batches."""

import pytest
import torch
import torch.nn.functional as F
from core.state_steps import step_of
from kernels_here import kernels, random

from pipezoo_core.recurrence import NO_SLOT, ShortConvolution, short_convolution

CHANNELS = 6


def whole(x, weight, bias):
    num_taps = weight.shape[1]
    padded = F.pad(x.T.double(), (num_taps - 1, 0))
    bias = None if bias is None else bias.double()
    return F.conv1d(padded, weight.double().unsqueeze(1), bias, groups=CHANNELS).T


@pytest.fixture(params=[1, 2, 3, 4], ids="taps{}".format)
def weight(request):
    torch.manual_seed(request.param)
    return torch.randn(CHANNELS, request.param, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("chunks", [(7,), (1,) * 7, (2, 5), (5, 1, 1), (3, 3, 1)], ids=str)
def test_chunks_give_what_the_whole_gives(weight, has_bias, chunks):
    x = torch.randn(7, CHANNELS, dtype=torch.float32, device="cpu")
    bias = torch.randn(CHANNELS, dtype=torch.float32, device="cpu") if has_bias else None
    state = torch.full((3, weight.shape[1] - 1, CHANNELS), torch.nan, dtype=torch.float32, device="cpu")
    read, pieces = NO_SLOT, []
    for number, part in enumerate(x.split(chunks)):
        write = number % 3
        pieces.append(short_convolution(part, weight, bias, state, step_of([len(part)], [read], [write])))
        state[[slot for slot in range(3) if slot != write]] = torch.nan  # what nobody reads any more
        read = write
    torch.testing.assert_close(torch.cat(pieces).double(), whole(x, weight, bias), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lengths", [(1, 1, 1), (4, 1, 2), (1, 6, 1)], ids=str)
def test_a_batch_is_each_alone_and_what_is_read_elsewhere_stays(weight, lengths):
    state = torch.randn(7, weight.shape[1] - 1, CHANNELS, dtype=torch.float32, device="cpu")
    before, x = state.clone(), torch.randn(sum(lengths), CHANNELS, dtype=torch.bfloat16, device="cpu")
    reads, writes = [4, 4, NO_SLOT], [0, 5, 2]  # two go on from the same state
    y = short_convolution(x, weight, None, state, step_of(lengths, reads, writes))
    assert y.dtype is torch.bfloat16
    for part, given, read, write in zip(x.split(lengths), y.split(lengths), reads, writes, strict=True):
        alone = before.clone()
        expected = short_convolution(part, weight, None, alone, step_of([len(part)], [read], [write]))
        assert torch.equal(given, expected)
        assert torch.equal(state[write], alone[write])
    untouched = [slot for slot in range(7) if slot not in writes]
    assert torch.equal(state[untouched], before[untouched])


def test_a_state_is_read_and_written_in_its_place(weight):
    x = torch.randn(9, CHANNELS, dtype=torch.float32, device="cpu")
    state = torch.zeros(2, weight.shape[1] - 1, CHANNELS, dtype=torch.float32, device="cpu")
    first = short_convolution(x[:4], weight, None, state, step_of([4], [NO_SLOT], [1]))
    second = short_convolution(x[4:], weight, None, state, step_of([5], [1], [1]))
    torch.testing.assert_close(torch.cat((first, second)).double(), whole(x, weight, None), atol=1e-5, rtol=1e-5)


def layers_of(num_channels, num_taps, dtype, *, bias, activation):
    """Returns a layer twice: in torch, and with the kernels."""
    layers = [ShortConvolution(num_channels, num_taps, bias=bias, activation=activation) for _ in range(2)]
    for layer in layers:
        for number, parameter in enumerate(layer.parameters()):
            parameter.data = random(*parameter.shape, seed=number).to(dtype)
    layers[1].compute_with(kernels(dtype))
    return layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_channels", [1, 8, 37, 160])
@pytest.mark.parametrize(("num_taps", "bias", "activation"), [(1, True, True), (2, False, False), (4, False, True)])
@torch.inference_mode()
def test_the_kernel_is_what_torch_computes(num_channels, num_taps, bias, activation, dtype):
    plain, native = layers_of(num_channels, num_taps, dtype, bias=bias, activation=activation)
    lengths, reads, writes = [1, 7, 2], [4, 1, NO_SLOT], [0, 1, 2]
    x = random(sum(lengths), num_channels + 5, seed=9).to(dtype)[:, 5:]  # a part of wider rows
    states = [random(5, *plain.state_shape, seed=8) for _ in range(2)]
    step = step_of(lengths, reads, writes)
    expected, found = (layer(x, state, step) for layer, state in zip((plain, native), states, strict=True))
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 1e-2, "rtol": 2e-2}
    torch.testing.assert_close(found, expected, **tolerance)
    assert torch.equal(*states)


@torch.inference_mode()
def test_parameters_that_are_columns_of_wider_tensors():
    plain, native = layers_of(8, 4, torch.float32, bias=True, activation=False)
    x, step = random(3, 8), step_of([3], [NO_SLOT], [0])
    expected = plain(x, torch.empty(1, *plain.state_shape), step)
    native.bias.data = native.bias.data[:, None].repeat(1, 3)[:, 1]
    torch.testing.assert_close(native(x, torch.empty(1, *plain.state_shape), step), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_chunks_and_batches_are_the_same_bits_in_the_kernel(dtype):
    _, layer = layers_of(37, 4, dtype, bias=True, activation=True)
    x = random(11, 37, seed=9).to(dtype)

    def in_chunks(size):
        state, read, results = random(3, *layer.state_shape), NO_SLOT, []
        for chunk in x.split(size):
            results.append(layer(chunk, state, step_of([len(chunk)], [read], [1])))
            read = 1
        return torch.cat(results), state[1]

    y, end = in_chunks(len(x))
    for size in range(1, len(x)):
        assert all(torch.equal(a, b) for a, b in zip(in_chunks(size), (y, end), strict=True))
    state, others = random(3, *layer.state_shape), random(4, 37).to(dtype)
    batch = torch.cat((others[:1], x, others[1:]))
    assert torch.equal(layer(batch, state, step_of([1, 11, 3], [0, NO_SLOT, 2], [0, 1, 2]))[1:12], y)
    assert torch.equal(state[1], end)


@pytest.mark.parametrize("is_native", [False, True])
@torch.inference_mode()
def test_what_is_no_number_stays_in_its_request(is_native):
    layer = layers_of(CHANNELS, 4, torch.float32, bias=False, activation=True)[is_native]
    state, x = random(4, *layer.state_shape), random(6, CHANNELS)
    state[3], x[2] = torch.nan, torch.nan
    first, second, third = layer(x, state, step_of([2, 1, 3], [0, 1, NO_SLOT], [0, 1, 3])).split([2, 1, 3])
    assert first.isfinite().all()
    assert third.isfinite().all()
    assert second.isnan().all()
    assert state[[0, 3]].isfinite().all()
