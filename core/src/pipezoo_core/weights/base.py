"""A checkpoint as a mapping from name to a tensor that is read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
        shape: of the tensor.
        dtype: that it has in the file; of a quantized one float32.
        copy_to: reads it into a tensor of its shape, whose dtype it takes on.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    copy_to: Callable[[Tensor], object]

    @classmethod
    def of_rows(cls, shape: tuple[int, ...], dtype: torch.dtype, read: Callable[[slice], Tensor]) -> LazyTensor:
        """Returns a tensor that is read a few of its rows at a time, so that reading takes little memory besides it.

        Args:
            shape: of the tensor, which has a dimension at least.
            dtype: of what `read` returns.
            read: reads a range of rows, which are along the first dimension.
        """

        def copy_to(target: Tensor) -> None:
            if not target.numel():
                return
            at_once = max(1, _NUMBERS_AT_ONCE // torch.Size(shape[1:]).numel())
            for first in range(0, len(target), at_once):
                rows = slice(first, min(first + at_once, len(target)))
                target[rows].copy_(read(rows))

        return cls(shape, dtype, copy_to)

    def load(self) -> Tensor:
        """Reads it whole."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        self.copy_to(tensor)
        return tensor

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return torch.Size(self.shape).numel()

    def then(self, change: Callable[[Tensor], Tensor]) -> LazyTensor:
        """Returns this tensor with a change to its values that keeps shape and dtype."""
        return LazyTensor(self.shape, self.dtype, lambda target: target.copy_(change(self.load())))


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

A pure function beside the model, one per format. What it leaves in unchanged and the module does not know is reported
as left over, so it drops only names that are known to be of no use.
"""
