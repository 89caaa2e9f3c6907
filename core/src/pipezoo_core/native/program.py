"""A step as a list of kernels, for any number of rows.

What a decoder computes of a step is the same kernels for any number of rows; some of their arguments grow with it. So
two recordings, with different numbers of rows, say what all others would be. Recorded with 2 and with 5 rows, a kernel
that was given 2 and 5, 1,152 and 2,880, and 576 both times is given T, 576 · T and 576 for T rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipezoo_core.native.memory_pool import aligned, aligned_bytes

__all__ = ["Notes", "Place", "Program", "arrange"]

_DEPENDS = "what the module computes depends on the number of rows"
_WIDTH = 16  # numbers per call: the kernel's address and its arguments


class Place(NamedTuple):
    """An argument that is an address in memory which the step takes for itself.

    Attributes:
        call: which call's argument.
        argument: which of its arguments.
        tensor: the number of the tensor that it is in.
        offset: how many bytes into it.
    """

    call: int
    argument: int
    tensor: int
    offset: int


@dataclass(frozen=True, slots=True)
class Notes:
    """What was recorded of a step.

    Attributes:
        num_rows: of the step.
        calls: each kernel's address and arguments.
        places: which of these are in tensors that were made meanwhile.
        inputs: for each input of the step, which arguments are its address: call and argument.
        sizes: of the tensors that were made, in bytes.
        output: the tensor that the step returns, and how many bytes into it that begins.
        row: shape and dtype of a row of what it returns.
    """

    num_rows: int
    calls: Sequence[Sequence[int]]
    places: Sequence[Place]
    inputs: Sequence[Sequence[tuple[int, int]]]
    sizes: Sequence[int]
    output: tuple[int, int]
    row: tuple[tuple[int, ...], torch.dtype]


class Program:
    """Computes steps of any number of rows as two of them were recorded.

    Args:
        few: notes of a step.
        many: notes of one with more rows.

    Raises:
        ValueError: they are not the same kernels, or an argument does not grow in proportion to the rows.
    """

    def __init__(self, few: Notes, many: Notes) -> None:
        self._constants, self._per_row = _proportions(few, many)
        self._recorded = (few.places, few.inputs, few.output, few.row)
        self._inputs = [np.array([_flat(*at) for at in places], dtype=np.int64) for places in few.inputs]
        self._made = np.array([_flat(place.call, place.argument) for place in few.places], dtype=np.int64)
        sizes = [max(-(-size // notes.num_rows) for size, notes in zip(both, (few, many), strict=True))
                 for both in zip(few.sizes, many.sizes, strict=True)]  # fmt: skip
        starts = arrange(_lifetimes(few), sizes)
        self._starts = np.array([starts[place.tensor] for place in few.places], dtype=np.int64)
        self._offsets = np.array([place.offset for place in few.places], dtype=np.int64)
        self._bytes_per_row = max(starts[tensor] + aligned(sizes[tensor]) for tensor in starts)
        self._output = starts[few.output[0]], few.output[1]
        self._row = few.row
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._calls = np.empty(0, dtype=np.int64)
        self._num_rows = 0

    def check(self, notes: Notes) -> None:
        """Compares the program with a third recording.

        Raises:
            ValueError: that did something else.
        """
        table, expected = _table(notes), self._constants + notes.num_rows * self._per_row
        # Of one row, what is a part of another tensor's rows looks like a whole one.
        compared = slice(None, None, _WIDTH if notes.num_rows == 1 else 1)
        is_same = (notes.places, notes.inputs, notes.output, notes.row) == self._recorded
        if not is_same or table.shape != expected.shape or (table[compared] != expected[compared]).any():
            raise ValueError(_DEPENDS)

    @property
    def num_calls(self) -> int:
        """How many kernels a step is."""
        return len(self._constants) // _WIDTH

    def prepare(self, num_rows: int, inputs: Sequence[int]) -> tuple[int, Tensor]:
        """Returns where the calls of a step lie, and what they will write; both valid until the next call.

        Args:
            num_rows: of the step.
            inputs: the addresses of its inputs, in the order of the notes.
        """
        if num_rows != self._num_rows:
            self._resize(num_rows)
        for places, address in zip(self._inputs, inputs, strict=True):
            self._calls.put(places, address)
        return self._calls.ctypes.data, self._result

    def _resize(self, num_rows: int) -> None:
        size = num_rows * self._bytes_per_row
        if size > len(self._memory):
            self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")  # gone before the larger one comes
            self._memory = torch.from_numpy(aligned_bytes(size))
        self._calls = self._constants + num_rows * self._per_row
        self._calls.put(self._made, self._memory.data_ptr() + num_rows * self._starts + self._offsets)
        (start, offset), (shape, dtype) = self._output, self._row
        first = num_rows * start + offset
        count = num_rows * torch.Size(shape).numel() * dtype.itemsize
        self._result = self._memory[first : first + count].view(dtype).view(num_rows, *shape)
        self._num_rows = num_rows


def _proportions(few: Notes, many: Notes) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is the same for all numbers of rows, and what is added for each row: int64, call after call."""
    if (few.places, few.inputs, few.output, few.row) != (many.places, many.inputs, many.output, many.row):
        raise ValueError(_DEPENDS)
    less, more = _table(few), _table(many)
    if less.shape != more.shape or (less[::_WIDTH] != more[::_WIDTH]).any():
        raise ValueError(_DEPENDS)
    per_row = np.where(less == more, 0, less // few.num_rows)
    constants = np.where(less == more, less, 0)
    if (constants + few.num_rows * per_row != less).any() or (constants + many.num_rows * per_row != more).any():
        raise ValueError("a kernel's argument is not in proportion to the number of rows")
    return constants, per_row


def _table(notes: Notes) -> np.ndarray:
    """Returns the calls, int64, one after the other; 0 in place of addresses that are not the same in each step."""
    table = np.zeros((len(notes.calls), _WIDTH), dtype=np.int64)
    for row, numbers in zip(table, notes.calls, strict=True):
        row[: len(numbers)] = numbers
    for place in notes.places:
        table[place.call, place.argument] = 0
    for places in notes.inputs:
        for at in places:
            table[at] = 0
    return table.ravel()


def _flat(call: int, argument: int) -> int:
    return call * _WIDTH + argument


def _lifetimes(notes: Notes) -> dict[int, tuple[int, int]]:
    """Returns the first and the last call that each tensor is an argument of; the output's last is behind all calls."""
    lifetimes: dict[int, tuple[int, int]] = {}
    uses = [(place.call, place.tensor) for place in notes.places]
    for call, tensor in [*uses, (len(notes.calls), notes.output[0])]:
        lifetimes[tensor] = (lifetimes.get(tensor, (call, call))[0], call)
    return lifetimes


def arrange(lifetimes: Mapping[int, tuple[int, int]], sizes: Sequence[int] | Mapping[int, int]) -> dict[int, int]:
    """Gives each tensor the first place that is free while it lives.

    With sizes 64, 128 and 64, alive during calls 0 to 1, 1 to 2 and 2 to 3, the first two begin at 0 and 64, and the
    third at 0 again.
    """
    starts: dict[int, int] = {}
    for tensor, (first, last) in sorted(lifetimes.items(), key=lambda item: item[1]):
        neighbours = sorted(
            (starts[other], starts[other] + sizes[other])
            for other in starts
            if lifetimes[other][0] <= last and first <= lifetimes[other][1]
        )
        start = 0
        for begin, end in neighbours:
            if begin - start >= sizes[tensor]:
                break
            start = max(start, aligned(end))
        starts[tensor] = start
    return starts
