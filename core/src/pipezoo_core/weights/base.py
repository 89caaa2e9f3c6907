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


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor of a checkpoint, known by its header.

    Attributes:
        shape: of the tensor that `load` returns.
        dtype: of that tensor.
        load: reads it from the file, or from the memory map.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return torch.Size(self.shape).numel()

    def then(self, change: Callable[[Tensor], Tensor]) -> LazyTensor:
        """Returns this tensor with a change to its values that keeps shape and dtype."""
        return LazyTensor(self.shape, self.dtype, lambda: change(self.load()))


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
