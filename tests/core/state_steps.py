"""Steps of layers with states."""

import itertools

import torch

from pipezoo_core.recurrence import StateStep

__all__ = ["step_of"]


def step_of(lengths, reads, writes):
    """Returns the step of requests with so many rows, that read and write these slots."""
    offsets = [0, *itertools.accumulate(lengths)]
    return StateStep.of(*(torch.tensor(x, dtype=torch.int64, device="cpu") for x in (offsets, reads, writes)))
