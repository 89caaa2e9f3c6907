"""What a layer with a state says of it, and where a step finds the states of its requests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipezoo_core.paging import NO_SLOT

__all__ = ["NO_SLOT", "StateSpec", "StateStep"]


@dataclass(frozen=True, slots=True)
class StateSpec:
    """What a layer keeps of a request instead of keys and values.

    Attributes:
        shapes: of its tensors, each float32, such as a convolution's last inputs, [K - 1, D].
    """

    shapes: tuple[tuple[int, ...], ...]

    @property
    def num_numbers(self) -> int:
        """Numbers of one request's state."""
        return sum(math.prod(shape) for shape in self.shapes)


@dataclass(frozen=True, slots=True)
class StateStep:
    """Where the states of one step's requests are, the same for all layers with a state.

    A layer's states are tensors [num_slots, …]. Request b's rows start from what slot `read_slots[b]` holds, and what
    they leave is written to slot `write_slots[b]`. Both may be one. Otherwise what is read stays as it is: others may
    read it, too, and nobody writes there in this step.

    Two requests that decode, the second from what others may go on from, too, and one that begins with 3 tokens:

        row_offsets  [0, 1, 2, 5]
        read_slots   [4, 2, -1]
        write_slots  [4, 0, 1]

    Attributes:
        row_offsets: int64 [B + 1], where each request's rows begin.
        read_slots: int64 [B], `NO_SLOT` where nothing was fed before, and the state is zeros.
        write_slots: int64 [B], all different.
        description: for kernels, int64: the number of requests, and the addresses of the three.
    """

    row_offsets: Tensor
    read_slots: Tensor
    write_slots: Tensor
    description: np.ndarray

    @classmethod
    def of(cls, row_offsets: Tensor, read_slots: Tensor, write_slots: Tensor) -> Self:
        """Returns the step with these tensors, and its description."""
        tensors = (row_offsets, read_slots, write_slots)
        numbers = [len(read_slots), *(tensor.data_ptr() for tensor in tensors)]
        return cls(*tensors, np.array(numbers, dtype=np.int64))

    @classmethod
    @cache
    def empty(cls) -> Self:
        """Returns a step of no requests, on the host."""
        offsets = torch.zeros(1, dtype=torch.int64, device="cpu")
        return cls.of(offsets, offsets[:0], offsets[:0])

    @property
    def address(self) -> int:
        """Where the description lies."""
        return self.description.ctypes.data
