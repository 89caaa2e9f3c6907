"""The operations of torch in a step that have no kernel, for any number of rows.

Two recordings say what all others would be, as they do of the kernels: see `program`. An operation that is run again
gives what it gave, so that a step with some is right bit for bit. It costs what torch takes for it, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipezoo_core.native.foreign_call import ForeignCall, Source, TensorPlace, joined, parted, with_each
from pipezoo_core.native.proportion import DEPENDS, Proportion

__all__ = ["BoundCall", "ForeignCalls", "UnforeseenShapeError"]

_MAX_COMPARED = 1 << 16  # bytes of memory from outside that a step may make anew each time, with the same numbers

Memory = Callable[[TensorPlace], tuple[torch.UntypedStorage, int]]  # of a tensor, and how many bytes into it it begins


class UnforeseenShapeError(ValueError):
    """An operation gave a result of another shape than when it was recorded: its shape depends on numbers."""


class ForeignCalls:
    """What two recordings say of a step's operations.

    Args:
        few: the operations of the smaller step, in their order.
        many: those of the other.
        num_rows: of the two.
        held: what memory from outside `few` reads. It is kept.
        held_by_many: likewise.

    Attributes:
        recorded: the operations of the smaller step.

    Raises:
        ValueError: they are not the same operations, or a number does not grow in proportion to the rows.
    """

    def __init__(
        self,
        few: Sequence[ForeignCall],
        many: Sequence[ForeignCall],
        num_rows: tuple[int, int],
        held: Sequence[torch.UntypedStorage],
        held_by_many: Sequence[torch.UntypedStorage],
    ) -> None:
        self.recorded = few
        self._held = held
        self._outlines, less = _parted(few)
        outlines, more = _parted(many)
        if self._outlines != outlines or not _hold_the_same(held, held_by_many):
            raise ValueError(DEPENDS)
        self._numbers = Proportion(less, more, num_rows, "a size or a number that an operation of torch is given")

    @property
    def operations(self) -> tuple[str, ...]:
        """The names of the operations, in their order."""
        return tuple(str(call.function) for call in self.recorded)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Which inputs of the step they read."""
        places = chain.from_iterable(call.tensors for call in self.recorded)
        return tuple(sorted({place.number for place in places if place.source is Source.input}))

    def of(self, num_rows: int) -> list[ForeignCall]:
        """Returns the operations of a step of so many rows."""
        numbers = iter(self._numbers.of(num_rows).tolist())
        return [joined(outline, numbers) for outline in self._outlines]

    def check(self, calls: Sequence[ForeignCall], num_rows: int, held: Sequence[torch.UntypedStorage]) -> None:
        """Compares a third recording.

        Raises:
            ValueError: that did something else.
        """
        expected = _parted([_with_plain_strides(call) for call in self.of(num_rows)])
        found = _parted([_with_plain_strides(call) for call in calls])
        if expected[0] != found[0] or not np.array_equal(expected[1], found[1]) or not _hold_the_same(self._held, held):
            raise ValueError(DEPENDS)

    def bind(self, num_rows: int, memory: Memory, inputs: Mapping[int, Tensor]) -> list[BoundCall]:
        """Gives the operations of a step of so many rows the tensors that they compute with.

        Args:
            num_rows: of the step.
            memory: says where tensors of the step lie.
            inputs: by their numbers, tensors that will have the numbers of the step's inputs.
        """

        def tensor(place: TensorPlace) -> Tensor:
            if place.source is Source.made:
                storage, start = memory(place)
            else:
                storage = (
                    self._held[place.number] if place.source is Source.held else inputs[place.number].untyped_storage()
                )
                start = place.offset
            first, rest = divmod(start, place.dtype.itemsize)
            assert rest == 0, place
            return torch.empty(0, dtype=place.dtype, device="cpu").set_(storage, first, place.shape, place.strides)

        return [BoundCall(call, tensor) for call in self.of(num_rows)]


class BoundCall:
    """An operation with the tensors that it reads and writes.

    Args:
        call: the operation.
        tensor: makes the tensor that lies somewhere.
    """

    def __init__(self, call: ForeignCall, tensor: Callable[[TensorPlace], Tensor]) -> None:
        self._function = call.function
        self._arguments = with_each(TensorPlace, tensor, call.arguments)
        self._named = {name: with_each(TensorPlace, tensor, value) for name, value in call.named}
        self._results = [tensor(place) for place in call.results]

    def __call__(self) -> None:
        """Computes it, and lays the results where those who read them expect them.

        Raises:
            UnforeseenShapeError: a result is not as large as it was when it was recorded.
        """
        given = self._function(*self._arguments, **self._named)
        if not self._results:
            return
        for result, place in zip(given if isinstance(given, tuple | list) else (given,), self._results, strict=True):
            if result.shape != place.shape:
                raise UnforeseenShapeError(str(self._function))
            place.copy_(result)


def _parted(calls: Sequence[ForeignCall]) -> tuple[list[Any], np.ndarray]:
    parts = [parted(call) for call in calls]
    numbers = [*chain.from_iterable(numbers for _, numbers in parts)]
    return [outline for outline, _ in parts], np.array(numbers, dtype=np.int64)


def _hold_the_same(one: Sequence[torch.UntypedStorage], other: Sequence[torch.UntypedStorage]) -> bool:
    """Whether two steps read the same from outside: the same memory, or the same numbers, made anew by each."""
    return len(one) == len(other) and all(map(_is_the_same, one, other))


def _is_the_same(one: torch.UntypedStorage, other: torch.UntypedStorage) -> bool:
    if one.data_ptr() == other.data_ptr():
        return True
    if one.nbytes() != other.nbytes() or one.nbytes() > _MAX_COMPARED:
        return False
    return torch.equal(*(torch.empty(0, dtype=torch.uint8, device="cpu").set_(each) for each in (one, other)))


def _with_plain_strides(call: ForeignCall) -> ForeignCall:
    """Takes away what strides say of dimensions of size 1, which is nothing."""
    return replace(
        call,
        arguments=with_each(TensorPlace, _plain, call.arguments),
        named=with_each(TensorPlace, _plain, call.named),
        results=with_each(TensorPlace, _plain, call.results),
    )


def _plain(place: TensorPlace) -> TensorPlace:
    strides = tuple(0 if size == 1 else stride for size, stride in zip(place.shape, place.strides, strict=True))
    return replace(place, strides=strides)
