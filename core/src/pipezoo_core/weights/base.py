"""A checkpoint as a mapping from name to a tensor that is read when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from pipezoo_core.config import WeightsFormat

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["LazyTensor", "Weights", "WeightsAdapter"]

_NUMBERS_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor of a checkpoint, known by its header.

    Attributes:
        shape: of the tensor, which has a dimension at least.
        dtype: that it has in the file; of a quantized one float32. Integers and bools are no weights: only a weight
            adapter can make something of them.
        read: reads a range of its rows, which are along the first dimension.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[slice], Tensor]

    def copy_to(self, target: Tensor) -> None:
        """Reads it into a tensor of its shape, whose dtype it takes on.

        A few rows at a time, so that reading takes little memory besides the target.
        """
        if not target.numel():
            return
        at_once = max(1, _NUMBERS_AT_ONCE // math.prod(self.shape[1:]))
        for first in range(0, len(target), at_once):
            rows = slice(first, min(first + at_once, len(target)))
            target[rows].copy_(self.read(rows))

    def load(self) -> Tensor:
        """Reads it whole."""
        tensor = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        self.copy_to(tensor)
        return tensor

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    def then(self, change: Callable[[Tensor], Tensor], num_rows: int) -> LazyTensor:
        """Returns this tensor with a change to its values that keeps shape and dtype.

        Args:
            change: is given some rows and returns what they become.
            num_rows: it is given a multiple of so many, from a multiple on: a row becomes what these say.
        """

        def read(rows: slice) -> Tensor:
            start = rows.start // num_rows * num_rows
            stop = min(-(-rows.stop // num_rows) * num_rows, self.shape[0])
            return change(self.read(slice(start, stop)))[rows.start - start : rows.stop - start]

        return LazyTensor(self.shape, self.dtype, read)

    def take(self, dim: int, ranges: Sequence[slice]) -> LazyTensor:
        """Returns some ranges of a dimension, 0 or 1, one after the other. Of the rows, no others are read."""
        starts = list(accumulate((part.stop - part.start for part in ranges), initial=0))

        def read_rows(rows: slice) -> Tensor:
            wanted = [
                self.read(slice(part.start + max(rows.start - start, 0), part.start + min(rows.stop, end) - start))
                for part, (start, end) in zip(ranges, pairwise(starts), strict=True)
                if start < rows.stop and rows.start < end
            ]
            return torch.cat(wanted) if len(wanted) > 1 else wanted[0]

        def read_columns(rows: slice) -> Tensor:
            read = self.read(rows)
            return torch.cat([read[:, part] for part in ranges], dim=1)

        shape = (*self.shape[:dim], starts[-1], *self.shape[dim + 1 :])
        return LazyTensor(shape, self.dtype, read_columns if dim else read_rows)


class Weights(Mapping[str, LazyTensor]):
    """The tensors of a checkpoint by their names in its files.

    Args:
        format: of the files.
        tensors: all tensors.
        is_quantized: whether the files hold fewer bits per weight than the tensors' dtype says.
    """

    def __init__(self, format: WeightsFormat, tensors: Mapping[str, LazyTensor], *, is_quantized: bool = False) -> None:  # noqa: A002 - the word every reader expects
        self.format = format
        self.is_quantized = is_quantized
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> LazyTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


WeightsAdapter: TypeAlias = "Callable[[Mapping[str, LazyTensor], PretrainedConfig], dict[str, LazyTensor]]"
"""Renames a checkpoint's tensors to the names of the model's module, and changes values where a format differs.

A pure function beside the model, one per format, that works tensor by tensor: the matrices of a LoRA adapter pass
through it one at a time, [out_features, rank] under the name of their layer's weight. What it leaves in unchanged and
the module does not know is reported as left over, so it drops only names that are known to be of no use.
"""
