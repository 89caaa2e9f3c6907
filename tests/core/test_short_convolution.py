"""The short convolution against torch's own, however the rows come in chunks and batches."""

import itertools

import pytest
import torch

from pipezoo_core.recurrence import NO_SLOT, StateStep, short_convolution

CHANNELS = 6


def step_of(lengths, reads, writes):
    offsets = [0, *itertools.accumulate(lengths)]
    return StateStep.of(*(torch.tensor(x, dtype=torch.int64, device="cpu") for x in (offsets, reads, writes)))


def whole(x, weight, bias):
    num_taps = weight.shape[1]
    padded = torch.nn.functional.pad(x.T.double(), (num_taps - 1, 0))
    bias = None if bias is None else bias.double()
    return torch.nn.functional.conv1d(padded, weight.double().unsqueeze(1), bias, groups=CHANNELS).T


@pytest.fixture(params=[1, 2, 3, 4], ids="taps{}".format)
def weight(request):
    torch.manual_seed(request.param)
    return torch.randn(CHANNELS, request.param, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("chunks", [(7,), (1,) * 7, (2, 5), (5, 1, 1), (3, 3, 1)], ids=str)
def test_chunks_give_what_the_whole_gives(weight, has_bias, chunks):
    x = torch.randn(7, CHANNELS, dtype=torch.float32, device="cpu")
    bias = torch.randn(CHANNELS, dtype=torch.float32, device="cpu") if has_bias else None
    state = torch.full((3, CHANNELS, weight.shape[1] - 1), torch.nan, dtype=torch.float32, device="cpu")
    read, pieces = NO_SLOT, []
    for number, part in enumerate(x.split(chunks)):
        write = number % 3
        pieces.append(short_convolution(part, weight, bias, state, step_of([len(part)], [read], [write])))
        state[[slot for slot in range(3) if slot != write]] = torch.nan  # what nobody reads any more
        read = write
    torch.testing.assert_close(torch.cat(pieces).double(), whole(x, weight, bias), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lengths", [(1, 1, 1), (4, 1, 2), (1, 6, 1)], ids=str)
def test_a_batch_is_each_alone_and_what_is_read_elsewhere_stays(weight, lengths):
    state = torch.randn(7, CHANNELS, weight.shape[1] - 1, dtype=torch.float32, device="cpu")
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
    state = torch.zeros(2, CHANNELS, weight.shape[1] - 1, dtype=torch.float32, device="cpu")
    first = short_convolution(x[:4], weight, None, state, step_of([4], [NO_SLOT], [1]))
    second = short_convolution(x[4:], weight, None, state, step_of([5], [1], [1]))
    torch.testing.assert_close(torch.cat((first, second)).double(), whole(x, weight, None), atol=1e-5, rtol=1e-5)
