"""A checkpoint as a mapping from name to a tensor that is read when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from pipezoo_core.config import WeightsFormat
from pipezoo_core.errors import CheckpointMismatchError
from pipezoo_core.layers.stored import StoredType

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["LazyTensor", "StoredTensor", "Weights", "WeightsAdapter", "concatenated", "divided"]

_NUMBERS_AT_ONCE = 2**20
_TRANSPOSED_AT_ONCE = 2**24  # each piece goes through the whole of the file's tensor: larger than most matrices


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A quantized tensor as its file has it.

    Attributes:
        type: of its blocks.
        bytes: uint8, of the tensor's shape but for the last dimension, which holds a row's blocks.
    """

    type: StoredType
    bytes: LazyTensor


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor of a checkpoint, known by its header.

    Attributes:
        shape: of the tensor, which has a dimension at least.
        dtype: that it has in the file; of a quantized one float32. Integers and bools are no weights: only a weight
            adapter can make something of them.
        read: reads a range of its rows, which are along the first dimension.
        read_vectors: reads a range of its vectors, which are along all dimensions but the last; None where its values
            are not a file's as they lie there.
        numbers_at_once: how many `copy_to` reads at a time.
        stored: its quantized form in the file; None where it has none, or other values than that.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[slice], Tensor]
    read_vectors: Callable[[slice], Tensor] | None = None
    numbers_at_once: int = _NUMBERS_AT_ONCE
    stored: StoredTensor | None = None

    def copy_to(self, target: Tensor) -> None:
        """Reads it into a tensor of its shape, whose dtype it takes on.

        A few rows at a time, so that reading takes little memory besides the target.
        """
        for rows in self.pieces(self.numbers_at_once):
            target[rows].copy_(self.read(rows))

    def pieces(self, numbers_at_once: int) -> Iterator[slice]:
        """Yields ranges that are all of its rows, each of at most so many numbers, or of one row."""
        if self.num_elements:
            at_once = max(1, numbers_at_once // math.prod(self.shape[1:]))
            for first in range(0, self.shape[0], at_once):
                yield slice(first, min(first + at_once, self.shape[0]))

    def load(self) -> Tensor:
        """Reads it whole."""
        tensor = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        self.copy_to(tensor)
        return tensor

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    def then(self, change: Callable[[Tensor], Tensor], num_rows: int, *, moves_rows: bool = False) -> LazyTensor:
        """Returns this tensor with a change to its values that keeps shape and dtype.

        Args:
            change: is given some rows and returns what they become.
            num_rows: it is given a multiple of so many, from a multiple on: a row becomes what these say.
            moves_rows: whether it does nothing but put rows in another order, quantized ones too.
        """

        def read(rows: slice) -> Tensor:
            start = rows.start // num_rows * num_rows
            stop = min(-(-rows.stop // num_rows) * num_rows, self.shape[0])
            return change(self.read(slice(start, stop)))[rows.start - start : rows.stop - start]

        changed = self._with(self.shape, read)
        return changed._keeping(self.stored, lambda rows: rows.then(change, num_rows)) if moves_rows else changed

    def rows(self, *ranges: slice) -> LazyTensor:
        """Returns some ranges of the rows, one after the other. No others are read.

        Of a fused matrix with four rows for q, and two each for k and v, `rows(slice(4, 6))` is k. Of one whose heads
        have two rows of q, k and v each, in turn, `rows(slice(0, 2), slice(6, 8))` is q of two heads.
        """
        starts = list(accumulate((part.stop - part.start for part in ranges), initial=0))

        def read(rows: slice) -> Tensor:
            wanted = [
                self.read(slice(part.start + max(rows.start - start, 0), part.start + min(rows.stop, end) - start))
                for part, (start, end) in zip(ranges, pairwise(starts), strict=True)
                if start < rows.stop and rows.start < end
            ]
            return torch.cat(wanted) if len(wanted) > 1 else wanted[0]

        return self._with((starts[-1], *self.shape[1:]), read)._keeping(self.stored, lambda rows: rows.rows(*ranges))

    def columns(self, *ranges: slice) -> LazyTensor:
        """Returns some ranges of the second dimension, one after the other.

        Quantized ones stay so where no range divides a block, and blocks have the columns in their own order.
        """

        def read(rows: slice) -> Tensor:
            found = self.read(rows)
            return torch.cat([found[:, part] for part in ranges], dim=1)

        found = self._with((self.shape[0], sum(part.stop - part.start for part in ranges), *self.shape[2:]), read)
        stored, block = self.stored, 0 if self.stored is None else self.stored.type.block
        if stored is None or stored.type.order is not None or len(self.shape) > 2:
            return found
        if any(part.start % block or part.stop % block for part in ranges):
            return found
        size = stored.type.block_bytes
        blocks = [slice(part.start // block * size, part.stop // block * size) for part in ranges]
        return found._keeping(stored, lambda rows: rows.columns(*blocks))

    def every_other(self, first: int) -> LazyTensor:
        """Returns every second of an even number of rows, from the first (0) or the second (1) on.

        Quantized ones stay so.
        """

        def read(rows: slice) -> Tensor:
            return self.read(slice(2 * rows.start, 2 * rows.stop))[first::2]

        found = self._with((self.shape[0] // 2, *self.shape[1:]), read)
        return found._keeping(self.stored, lambda rows: rows.every_other(first))

    def transposed(self) -> LazyTensor:
        """Returns a matrix [I, O] as [O, I]: GPT-2's `Conv1D` is stored in the other order than a linear layer."""
        num_columns, num_rows = self.shape

        def read(rows: slice) -> Tensor:
            target = torch.empty(rows.stop - rows.start, num_columns, dtype=self.dtype, device="cpu")
            self.columns(rows).copy_to(target.T)
            return target

        return replace(self._with((num_rows, num_columns), read), numbers_at_once=_TRANSPOSED_AT_ONCE)

    def unstacked(self) -> tuple[LazyTensor, ...]:
        """Returns the tensors along the first dimension: of [E, O, I] E matrices, the experts of a layer.

        Of a file's tensor, a range of an expert's rows is read where it lies; of one that was changed, the expert is
        read whole for it.
        """
        return tuple(self._element(number) for number in range(self.shape[0]))

    def _element(self, number: int) -> LazyTensor:
        shape, vectors = self.shape[1:], self.read_vectors
        per_row = math.prod(shape[1:-1])

        def read(rows: slice) -> Tensor:
            if vectors is None or len(shape) < 2:
                return self.read(slice(number, number + 1))[0][rows]
            first = number * shape[0]
            found = vectors(slice((first + rows.start) * per_row, (first + rows.stop) * per_row))
            return found.view(-1, *shape[1:])

        at_once = _NUMBERS_AT_ONCE if vectors else _TRANSPOSED_AT_ONCE
        element = replace(self._with(shape, read), numbers_at_once=at_once)
        return element._keeping(self.stored, lambda stack: stack._element(number))

    def _keeping(self, stored: StoredTensor | None, change: Callable[[LazyTensor], LazyTensor]) -> LazyTensor:
        """Returns this tensor with what becomes of the quantized form of that which it was made of."""
        return self if stored is None else replace(self, stored=replace(stored, bytes=change(stored.bytes)))

    def _with(self, shape: tuple[int, ...], read: Callable[[slice], Tensor]) -> LazyTensor:
        return LazyTensor(shape, self.dtype, read, numbers_at_once=self.numbers_at_once)


def concatenated(tensors: Sequence[LazyTensor]) -> LazyTensor:
    """Returns the rows of several tensors, one tensor after the other. Of a range, no other rows are read.

    Their dtype is that of the first; numbers of the others are rounded to it where they differ.

    Raises:
        CheckpointMismatchError: their rows are of different shapes.
    """
    first, shapes = tensors[0], {tensor.shape[1:] for tensor in tensors}
    if len(shapes) > 1:
        raise CheckpointMismatchError(wrong_shape=[f"rows of {sorted(map(list, shapes))} -> of one shape"])
    starts = list(accumulate((tensor.shape[0] for tensor in tensors), initial=0))

    def read(rows: slice) -> Tensor:
        return torch.cat(
            [
                tensor.read(slice(max(rows.start - start, 0), min(rows.stop, end) - start)).to(first.dtype)
                for tensor, (start, end) in zip(tensors, pairwise(starts), strict=True)
                if start < rows.stop and rows.start < end
            ]
        )

    at_once = max(tensor.numbers_at_once for tensor in tensors)
    whole = LazyTensor((starts[-1], *first.shape[1:]), first.dtype, read, numbers_at_once=at_once)
    stored = [tensor.stored for tensor in tensors if tensor.stored is not None]
    if len(stored) < len(tensors) or len({each.type.layout for each in stored}) > 1:
        return whole
    return replace(whole, stored=StoredTensor(stored[0].type, concatenated([each.bytes for each in stored])))


def divided(name: str, tensor: LazyTensor, fused: str, parts: Mapping[str, int]) -> dict[str, LazyTensor]:
    """Returns the rows of a fused layer's tensor as those of its parts, the inverse of `concatenated`.

    `h.0.c_attn.bias` of 96 numbers is `h.0.q_proj.bias` and two more, with 32 each. A tensor of another number of rows
    is left as it is, to be reported as left over.

    Args:
        name: of the tensor, with the layer's in it.
        tensor: its rows.
        fused: the layer's name.
        parts: the rows of each part, by the names that take its place.
    """
    if tensor.shape[0] != sum(parts.values()):
        return {name: tensor}
    bounds = pairwise(accumulate(parts.values(), initial=0))
    return {
        name.replace(fused, part): tensor.rows(slice(first, end))
        for part, (first, end) in zip(parts, bounds, strict=True)
    }


class Weights(Mapping[str, LazyTensor]):
    """The tensors of a checkpoint by their names in its files.

    Args:
        format: of the files.
        tensors: all tensors.
        is_quantized: whether the files hold fewer bits per weight than the tensors' dtype says.
        is_adapted: whether the names are those of the model's module already.
        rounding: the dtype that the weights were rounded to as a load with it rounds them; None for others.
    """

    def __init__(
        self,
        format: WeightsFormat,  # noqa: A002 - the word every reader expects
        tensors: Mapping[str, LazyTensor],
        *,
        is_quantized: bool = False,
        is_adapted: bool = False,
        rounding: str | None = None,
    ) -> None:
        self.format = format
        self.is_quantized = is_quantized
        self.is_adapted = is_adapted
        self.rounding = rounding
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> LazyTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def adapted(self, adapter: WeightsAdapter | None, config: PretrainedConfig) -> dict[str, LazyTensor]:
        """Returns the tensors by the names of the model's module.

        Args:
            adapter: of the model, for this format; None where names are the module's.
            config: of the model.
        """
        return dict(self) if adapter is None or self.is_adapted else adapter(self, config)


WeightsAdapter: TypeAlias = "Callable[[Mapping[str, LazyTensor], PretrainedConfig], dict[str, LazyTensor]]"
"""Renames a checkpoint's tensors to the names of the model's module, and changes values where a format differs.

A pure function beside the model, one per format, that works tensor by tensor: the matrices of a LoRA adapter pass
through it one at a time, [out_features, rank] under the name of their layer's weight. What it leaves in unchanged and
the module does not know is reported as left over, so it drops only names that are known to be of no use.
"""
