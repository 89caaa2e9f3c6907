"""Small messages between the ranks of one host, through memory that they share.

Each rank has a signal buffer, which it alone writes and all read: a number that counts its messages, and two halves
that take the messages by turns. To exchange message k, a rank writes it into half k mod 2 of its own buffer, sets its
number to k, and waits until all numbers are at least k. Who writes message k + 2 into the same half has seen all
numbers at k + 1, so that nobody reads message k any more: one wait per message suffices.

The number must not be seen before the message. x86 keeps the order of a core's writes; elsewhere this is not used.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipezoo_core.distributed.shared_file import map_shared_file

__all__ = ["SIGNAL_BUFFER_BYTES", "Signals", "can_signal", "map_signal_buffers"]

SIGNAL_BUFFER_BYTES = 1 << 20
"""Shared memory of a rank, through which ranks of one machine exchange what they have."""

_HEADER = 64  # a cache line, so that who waits for the number does not slow down who writes the message
_HALF = (SIGNAL_BUFFER_BYTES - _HEADER) // 2 // _HEADER * _HEADER
_MAX_VIEWS = 64
_SPINS = 2000  # about a millisecond
_PAUSE = 5e-5
_PAUSES_PER_CHECK = 2000


def can_signal() -> bool:
    """Whether signal buffers can be used on this machine."""
    return hasattr(os, "memfd_create") and platform.machine() in ("x86_64", "AMD64")


def map_signal_buffers(path: Path, num_ranks: int) -> list[Tensor]:
    """Maps the signal buffers of all ranks, uint8 each, from a file that holds one after the other."""
    memory = torch.frombuffer(map_shared_file(path), dtype=torch.uint8)
    assert len(memory) == num_ranks * SIGNAL_BUFFER_BYTES
    return list(memory.split(SIGNAL_BUFFER_BYTES))


class Signals:
    """Exchanges messages of at most `max_bytes` with the other ranks.

    Args:
        buffers: of all ranks, in their order; zeros at first.
        rank: which of them is this process's own.
        check: called now and then while waiting; raises if a rank is gone.
    """

    max_bytes = _HALF

    def __init__(self, buffers: Sequence[Tensor], rank: int, check: Callable[[], None]) -> None:
        self._buffers = list(buffers)
        self._check = check
        self._numbers = [buffer[:8].numpy().data.cast("q") for buffer in buffers]
        self._rank = rank
        self._number = 0
        self._views: dict[tuple[object, ...], list[Tensor]] = {}

    def exchange(self, message: Tensor, shapes: Sequence[Sequence[int]] | None = None) -> list[Tensor]:
        """Returns the messages of all ranks, in their order, where they lie: valid until the next call.

        Args:
            message: of this rank.
            shapes: of all messages, where they differ.
        """
        self._number += 1
        views = self._views_of(message, shapes)
        views[self._rank].copy_(message)
        self._numbers[self._rank][0] = self._number
        for number in self._numbers:
            if number[0] < self._number:
                self._wait(number)
        return views

    def all_reduce(self, x: Tensor) -> Tensor:
        """Returns the sum over all ranks, added in their order: the same on all of them, bit for bit."""
        first, *others = self.exchange(x)
        if len(others) == 1:
            return first + others[0]
        total = first.to(torch.promote_types(x.dtype, torch.float32), copy=True)
        for other in others:
            total += other
        return total.to(x.dtype)

    def _views_of(self, message: Tensor, shapes: Sequence[Sequence[int]] | None) -> list[Tensor]:
        shapes = [message.shape] * len(self._buffers) if shapes is None else shapes
        half = self._number % 2
        key = (half, message.dtype, *map(tuple, shapes))
        views = self._views.get(key)
        if views is None:
            start = _HEADER + half * _HALF
            sizes = [torch.Size(shape).numel() * message.dtype.itemsize for shape in shapes]
            if len(self._views) == _MAX_VIEWS:
                self._views.clear()
            views = self._views[key] = [
                buffer[start : start + size].view(message.dtype).view(tuple(shape))
                for buffer, size, shape in zip(self._buffers, sizes, shapes, strict=True)
            ]
        return views

    def _wait(self, number: memoryview) -> None:
        for _ in range(_SPINS):
            if number[0] >= self._number:
                return
            os.sched_yield()
        while True:
            for _ in range(_PAUSES_PER_CHECK):
                if number[0] >= self._number:
                    return
                time.sleep(_PAUSE)
            self._check()
