"""A step as a list of kernels, for any number of rows.

What a decoder computes of a step is the same kernels for any number of rows; some of their arguments grow with it. So
two recordings, with different numbers of rows, say what all others would be. Recorded with 2 and with 5 rows, a kernel
that was given 2 and 5, 1,152 and 2,880, and 576 both times is given T, 576 · T and 576 for T rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipezoo_core.native.foreign_call import ForeignCall, Source
from pipezoo_core.native.foreign_calls import BoundCall, ForeignCalls
from pipezoo_core.native.proportion import DEPENDS, Proportion
from pipezoo_core.native.step_memory import StepMemory

__all__ = ["Notes", "Place", "Program", "Stretch", "lifetimes"]

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
        foreign: the operations of torch that have no kernel, in their order.
        held: the memory from outside the step that these read.
    """

    num_rows: int
    calls: Sequence[Sequence[int]]
    places: Sequence[Place]
    inputs: Sequence[Sequence[tuple[int, int]]]
    sizes: Sequence[int]
    output: tuple[int, int]
    row: tuple[tuple[int, ...], torch.dtype]
    foreign: Sequence[ForeignCall]
    held: Sequence[torch.UntypedStorage]

    @property
    def what(self) -> tuple[Any, ...]:
        """What is the same for all numbers of rows."""
        places = [(place.call, place.argument, place.tensor) for place in self.places]
        return places, self.inputs, self.output, self.row, [call.at for call in self.foreign]

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """How far into their tensors the arguments are, in bytes."""
        return np.array([place.offset for place in self.places], dtype=np.int64)


class Stretch(NamedTuple):
    """What is run of a step without coming back to Python.

    Attributes:
        address: of the first kernel's call.
        num_calls: how many kernels there are.
        then: an operation of torch that comes after them, if one does.
    """

    address: int
    num_calls: int
    then: BoundCall | None


class Program:
    """Computes steps of any number of rows as two of them were recorded.

    Args:
        few: notes of a step.
        many: notes of one with more rows.

    Raises:
        ValueError: they are not the same kernels, or an argument does not grow in proportion to the rows.
    """

    def __init__(self, few: Notes, many: Notes) -> None:
        if few.what != many.what:
            raise ValueError(DEPENDS)
        num_rows = few.num_rows, many.num_rows
        less, more = _table(few), _table(many)
        if less.shape != more.shape or (less[::_WIDTH] != more[::_WIDTH]).any():
            raise ValueError(DEPENDS)
        self._numbers = Proportion(less, more, num_rows, "a kernel's argument")
        self._offsets = Proportion(few.offsets, many.offsets, num_rows, "the place of a kernel's argument")
        self._foreign = ForeignCalls(few.foreign, many.foreign, num_rows, few.held, many.held)
        self._recorded = few.what
        self._inputs = [np.array([_flat(*at) for at in places], dtype=np.int64) for places in few.inputs]
        self._made = np.array([_flat(place.call, place.argument) for place in few.places], dtype=np.int64)
        self._tensors = np.array([place.tensor for place in few.places], dtype=np.int64)
        self._memory = StepMemory(lifetimes(few), (few.sizes, many.sizes), num_rows)
        self._output, self._row = few.output, few.row
        self._calls = np.empty(0, dtype=np.int64)
        self._staged: dict[int, Tensor] = {}
        self._num_rows = 0

    def check(self, notes: Notes) -> None:
        """Compares the program with a third recording.

        Raises:
            ValueError: that did something else.
        """
        table, expected = _table(notes), self._numbers.of(notes.num_rows)
        # Of one row, what is a part of another tensor's rows looks like a whole one.
        compared = slice(None, None, _WIDTH if notes.num_rows == 1 else 1)
        is_same = notes.what == self._recorded and (notes.offsets == self._offsets.of(notes.num_rows)).all()
        if not is_same or table.shape != expected.shape or (table[compared] != expected[compared]).any():
            raise ValueError(DEPENDS)
        self._foreign.check(notes.foreign, notes.num_rows, notes.held)

    @property
    def foreign(self) -> Sequence[ForeignCall]:
        """The operations of the smaller step that was recorded."""
        return self._foreign.recorded

    @property
    def num_calls(self) -> int:
        """How many kernels a step is."""
        return len(self._numbers.constants) // _WIDTH

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations of torch in a step that have no kernel, in their order."""
        return self._foreign.operations

    def prepare(self, num_rows: int, inputs: Sequence[int], tensors: Sequence[Tensor]) -> tuple[list[Stretch], Tensor]:
        """Returns how a step is run, and what it will write; both valid until the next call.

        Args:
            num_rows: of the step.
            inputs: the addresses of its inputs, in the order of the notes.
            tensors: the first inputs, as many as operations of torch may read.
        """
        if num_rows != self._num_rows:
            self._resize(num_rows)
        for places, address in zip(self._inputs, inputs, strict=True):
            self._calls.put(places, address)
        for number, staged in self._staged.items():
            staged.copy_(tensors[number])
        return self._stretches, self._result

    def _resize(self, num_rows: int) -> None:
        self._memory.resize(num_rows)
        self._calls = self._numbers.of(num_rows)
        self._calls.put(self._made, self._memory.addresses(self._tensors) + self._offsets.of(num_rows))
        (tensor, offset), (shape, dtype) = self._output, self._row
        self._result = self._memory.view(tensor, offset, (num_rows, *shape), dtype)
        self._staged = {i: torch.empty(num_rows, dtype=torch.int64, device="cpu") for i in self._foreign.inputs}
        bound = self._foreign.bind(num_rows, self._memory.find, self._staged)
        self._stretches = [*self._divided(bound)]
        self._num_rows = num_rows

    def _divided(self, bound: Sequence[BoundCall]) -> Iterator[Stretch]:
        begin = 0
        ends = [*(call.at for call in self._foreign.recorded), self.num_calls]
        for call, then in zip(ends, [*bound, None], strict=True):
            yield Stretch(self._calls.ctypes.data + begin * _WIDTH * self._calls.itemsize, call - begin, then)
            begin = call


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


def lifetimes(notes: Notes) -> dict[int, tuple[int, int]]:
    """Returns when each tensor is used first and last; the output's last is behind everything.

    One clock counts kernels and operations of torch. With an operation after two kernels and one after three, these are
    the times 2 and 4, and the kernels the times 0, 1, 3 and so on.
    """
    before = [call.at for call in notes.foreign]
    uses = [(place.call + bisect_right(before, place.call), place.tensor) for place in notes.places]
    for number, call in enumerate(notes.foreign):
        uses += [(call.at + number, place.number) for place in call.tensors if place.source is Source.made]
    spans: dict[int, tuple[int, int]] = {}
    for time, tensor in [*sorted(uses), (len(notes.calls) + len(notes.foreign), notes.output[0])]:
        spans[tensor] = (spans.get(tensor, (time, time))[0], time)
    return spans
