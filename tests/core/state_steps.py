"""Steps of layers with states, and what holds of every recurrence."""

import itertools

import torch
from kernels_here import random

from pipezoo_core.recurrence import NO_SLOT, StateStep


def step_of(lengths, reads, writes):
    """Returns the step of requests with so many rows, that read and write these slots."""
    offsets = [0, *itertools.accumulate(lengths)]
    return StateStep.of(*(torch.tensor(x, dtype=torch.int64, device="cpu") for x in (offsets, reads, writes)))


def states_of(layer, num_slots=6):
    return random(num_slots, *layer.state_shape, seed=4)


def assert_is_the_formula(layer, rows, lengths, by_the_formula):
    """Of three requests, of which two go on from states.

    Args:
        layer: a recurrence.
        rows: the tensors that it is given.
        lengths: of the requests.
        by_the_formula: makes one request's results and its state, in float64, of its rows and the state before.
    """
    states = states_of(layer)
    before = states.clone()
    reads, writes = [4, NO_SLOT, 2], [0, 5, 2]
    y = layer(*rows, states, step_of(lengths, reads, writes))
    assert y.dtype is rows[0].dtype
    exact = {"atol": 1e-4, "rtol": 1e-4}
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if y.dtype is torch.bfloat16 else exact
    by_request = zip(y.split(lengths), zip(*(x.split(lengths) for x in rows), strict=True), reads, writes, strict=True)
    for found, own, read, write in by_request:
        start = torch.zeros_like(before[0]) if read == NO_SLOT else before[read]
        expected, end = by_the_formula(*own, start)
        torch.testing.assert_close(found.double(), expected, **tolerance)
        torch.testing.assert_close(states[write].double(), end, **exact)
    assert torch.equal(states[[1, 3, 4]], before[[1, 3, 4]])


def assert_chunks_and_batches_are_the_same_bits(layer, rows, others):
    """Of one request's rows, in chunks of each size, and beside five other rows."""
    num_rows = len(rows[0])

    def in_chunks(size):
        states, read, results = states_of(layer), NO_SLOT, []
        for chunk in zip(*(x.split(size) for x in rows), strict=True):
            results.append(layer(*chunk, states, step_of([len(chunk[0])], [read], [1])))
            read = 1
        return torch.cat(results), states[1]

    y, end = in_chunks(num_rows)
    for size in range(1, num_rows):
        found, state = in_chunks(size)
        assert torch.equal(found, y)
        assert torch.equal(state, end)
    batch = [torch.cat((x[:2], own, x[2:])) for x, own in zip(others, rows, strict=True)]
    states = states_of(layer)
    found = layer(*batch, states, step_of([1, 1, num_rows, 3], [3, 4, NO_SLOT, NO_SLOT], [3, 0, 1, 2]))
    assert torch.equal(found[2 : 2 + num_rows], y)
    assert torch.equal(states[1], end)
