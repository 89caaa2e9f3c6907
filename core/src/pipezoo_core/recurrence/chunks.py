"""Requests' rows in chunks, as the torch forms of recurrences compute them, and what is left of a state within one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipezoo_core.recurrence.base import NO_SLOT, StateStep

__all__ = ["chunks", "left_of_states"]

_CHUNK = 64  # rows whose products are computed together
_ALL_FORGOTTEN = -1000.0  # of a decay, whose exp is 0 in float32: sums of such keep what smaller ones differ by


def chunks(states: Tensor, step: StateStep) -> Iterator[tuple[slice, Tensor]]:
    """Yields a step's rows, some of one request at a time, in order, with the state that these change.

    Args:
        states: [num_slots, …]. A request's own slot becomes what it goes on from, be it fed rows or not.
        step: of the rows.
    """
    offsets, reads, writes = (x.tolist() for x in (step.row_offsets, step.read_slots, step.write_slots))
    for begin, end, read, write in zip(offsets, offsets[1:], reads, writes, strict=False):
        if read == NO_SLOT:
            states[write].zero_()
        elif read != write:
            states[write].copy_(states[read])
        for first in range(begin, end, _CHUNK):
            yield slice(first, min(first + _CHUNK, end)), states[write]


def left_of_states(decay: Tensor) -> tuple[Tensor, Tensor]:
    """Returns how much is left of a state by each row of a chunk.

    Logarithms are summed in float64: where decay alternates they are large, and their differences small.

    Args:
        decay: logarithms of what each row leaves, at most 0, [..., C].

    Returns:
        Of what row j has left, by row i, 0 for later rows: float32 [..., C, C]. Of what was there before, by each row:
        [..., C, 1].
    """
    total = decay.clamp(min=_ALL_FORGOTTEN).double().cumsum(-1)
    is_later = torch.ones(total.shape[-1], total.shape[-1], dtype=torch.bool, device=decay.device).triu(1)
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(is_later, -torch.inf).exp().float()
    return between, total.exp().float().unsqueeze(-1)
