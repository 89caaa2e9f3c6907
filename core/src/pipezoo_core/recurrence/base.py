"""What a layer with a state says of it, and where a step finds the states of its requests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipezoo_core.errors import TensorMismatchError
from pipezoo_core.paging import NO_SLOT

__all__ = ["NO_SLOT", "StateSpec", "StateStep"]

_TENSORS = ("row_offsets", "read_slots", "write_slots")


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
        num_rows: of all requests.
        description: for kernels, int64: the number of requests, and the addresses of the three.
        address: where the description lies.
    """

    row_offsets: Tensor
    read_slots: Tensor
    write_slots: Tensor
    num_rows: int
    description: np.ndarray
    address: int

    @classmethod
    def of(cls, row_offsets: Tensor, read_slots: Tensor, write_slots: Tensor) -> Self:
        """Returns the step with these tensors, and its description.

        Raises:
            TensorMismatchError: a tensor is of another dtype or shape, has gaps, or lies elsewhere than the others.
        """
        tensors, num_requests = (row_offsets, read_slots, write_slots), len(read_slots)
        for name, tensor, size in zip(_TENSORS, tensors, (num_requests + 1, num_requests, num_requests), strict=True):
            is_right = tensor.dtype is torch.int64 and tensor.shape == (size,) and tensor.is_contiguous()
            if not (is_right and tensor.device == row_offsets.device):
                raise TensorMismatchError(
                    f"a step of layers with a state was given other {name} than it is made of",
                    found=f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}",
                    allowed=f"torch.int64 [{size}], contiguous, on {row_offsets.device}",
                    cure="Check what the step is made of.",
                )
        description = np.array([num_requests, *(tensor.data_ptr() for tensor in tensors)], dtype=np.int64)
        return cls(*tensors, int(row_offsets[-1]), description, description.ctypes.data)

    @classmethod
    @cache
    def empty(cls) -> Self:
        """Returns a step of no requests, on the host."""
        offsets = torch.zeros(1, dtype=torch.int64, device="cpu")
        return cls.of(offsets, offsets[:0], offsets[:0])
