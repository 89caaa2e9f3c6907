"""An operation of torch that has no kernel, as it is noted in a recorded step.

What it is given and what it returns are tensors that lie in the step's memory, in its inputs, or outside of it: a
module's weights, say. Where they lie is noted in place of them, so that a step of any size can be given its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

import torch

__all__ = ["ForeignCall", "Source", "TensorPlace", "each_of", "joined", "parted", "with_each"]


Kind = TypeVar("Kind")


class Source(Enum):
    """What a tensor's numbers lie in."""

    made = "memory that the step takes for itself"
    input = "an input of the step"
    held = "memory from outside the step"


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor lies.

    Attributes:
        source: what it lies in.
        number: which tensor that was made, which input, or which of the memory that is held.
        offset: how many bytes into it.
        shape: of the tensor.
        strides: likewise, in numbers.
        dtype: likewise.
    """

    source: Source
    number: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class ForeignCall:
    """A call of an operation.

    Attributes:
        at: how many kernels run before it.
        function: the overload of the operation.
        arguments: constants, and places for tensors; lists and tuples of these.
        named: likewise, those that are given by name.
        results: where its results are to lie; none of an operation that writes in place.
    """

    at: int
    function: Any
    arguments: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]
    results: tuple[TensorPlace, ...]

    @property
    def tensors(self) -> list[TensorPlace]:
        """What it reads and writes, in the order of its arguments."""
        return list(each_of(TensorPlace, (self.arguments, self.named, self.results)))


class _Number(Enum):
    """Stands for a whole number in what `parted` leaves of a call."""

    any = 0


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Stands for a tensor there, without what may grow with the rows."""

    source: Source
    number: int
    num_dims: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _Constant:
    """Stands for anything else; a float is compared as it is written, so that nan is nan and 0.0 is not -0.0."""

    kind: type
    key: Any
    value: Any = field(compare=False)


@dataclass(frozen=True, slots=True)
class _Sequence:
    """Stands for a list or a tuple."""

    kind: type
    parts: tuple[Any, ...]


def parted(call: ForeignCall) -> tuple[Any, list[int]]:
    """Parts a call into what is the same for each number of rows, and whole numbers that may grow with it."""
    numbers: list[int] = []
    whole = (call.arguments, call.named, call.results)
    return (call.at, call.function, _without_numbers(whole, numbers)), numbers


def joined(outline: Any, numbers: Iterator[int]) -> ForeignCall:
    """Makes the call of its parts; as many of the numbers are taken as belong to it."""
    at, function, parts = outline
    return ForeignCall(at, function, *_with_numbers(parts, numbers))


def with_each(kind: type[Kind], act: Callable[[Kind], Any], value: Any) -> Any:
    """Returns lists, tuples and constants with what an act makes of each that is of a kind."""
    if isinstance(value, kind):
        return act(value)
    if isinstance(value, list | tuple):
        return type(value)(with_each(kind, act, each) for each in value)
    return value


def each_of(kind: type[Kind], value: Any) -> Iterator[Kind]:
    """Yields what is of a kind in lists and tuples, in their order."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from each_of(kind, each)


def _without_numbers(value: Any, numbers: list[int]) -> Any:
    if isinstance(value, TensorPlace):
        numbers += [value.offset, *value.shape, *value.strides]
        return _Tensor(value.source, value.number, len(value.shape), value.dtype)
    if isinstance(value, int) and not isinstance(value, bool):
        numbers.append(value)
        return _Number.any
    if isinstance(value, list | tuple):
        return _Sequence(type(value), tuple(_without_numbers(each, numbers) for each in value))
    return _Constant(type(value), repr(value) if isinstance(value, float) else value, value)


def _with_numbers(outline: Any, numbers: Iterator[int]) -> Any:
    if isinstance(outline, _Constant):
        return outline.value
    if isinstance(outline, _Sequence):
        return outline.kind(_with_numbers(part, numbers) for part in outline.parts)
    if isinstance(outline, _Tensor):
        offset, *sizes = (next(numbers) for _ in range(1 + 2 * outline.num_dims))
        shape, strides = sizes[: outline.num_dims], sizes[outline.num_dims :]
        return TensorPlace(outline.source, outline.number, offset, tuple(shape), tuple(strides), outline.dtype)
    return next(numbers)
