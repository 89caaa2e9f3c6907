"""The memory that a recorded step takes for itself: where its tensors lie, for any number of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipezoo_core.native.foreign_call import TensorPlace
from pipezoo_core.native.memory_pool import aligned, aligned_bytes

__all__ = ["StepMemory", "arrange"]


class StepMemory:
    """Tensors share memory where they do not live at the same time.

    Those whose size grows with the rows begin at a multiple of their number. The others, a mask of all positions, say,
    lie in a piece of their own, which is as large for one row as for a thousand.

    Args:
        lifetimes: when each tensor is used first and last, by their numbers.
        sizes: of all tensors in two steps, in bytes.
        num_rows: of the two.

    Attributes:
        bytes_per_row: that the growing tensors take together.
        fixed_bytes: that the others take.
    """

    def __init__(
        self,
        lifetimes: Mapping[int, tuple[int, int]],
        sizes: tuple[Sequence[int], Sequence[int]],
        num_rows: tuple[int, int],
    ) -> None:
        few, many = (dict(enumerate(each)) for each in sizes)
        growing = {i: _per_row((few[i], many[i]), num_rows) for i in lifetimes if few[i] != many[i]}
        fixed = {i: few[i] for i in lifetimes if i not in growing}
        per_row, alone = (arrange({i: lifetimes[i] for i in part}, part) for part in (growing, fixed))
        self.bytes_per_row = max((per_row[i] + aligned(growing[i]) for i in growing), default=0)
        self.fixed_bytes = max((alone[i] + aligned(fixed[i]) for i in fixed), default=0)
        num_tensors = len(few)
        self._per_row, self._fixed = (np.zeros(num_tensors, dtype=np.int64) for _ in range(2))
        self._per_row.put([*per_row], [*per_row.values()])
        self._fixed.put([*alone], [*alone.values()])
        self._is_fixed = np.isin(np.arange(num_tensors), [*fixed])
        self._sizes = growing, fixed
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._starts = self._fixed
        self._num_rows = 0

    def resize(self, num_rows: int) -> None:
        """Makes room for a step of so many rows; what was found before holds no longer."""
        self._num_rows = num_rows
        self._starts = np.where(self._is_fixed, self._fixed, self.fixed_bytes + num_rows * self._per_row)
        size = self.fixed_bytes + num_rows * self.bytes_per_row
        if size > len(self._memory):
            self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")  # gone before the larger one comes
            self._memory = torch.from_numpy(aligned_bytes(size))

    def addresses(self, tensors: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns where tensors begin."""
        return self._memory.data_ptr() + self._starts[tensors]

    def find(self, place: TensorPlace) -> tuple[torch.UntypedStorage, int]:
        """Returns the memory that a tensor of the step is in, and how many bytes into it."""
        end = sum((size - 1) * stride for size, stride in zip(place.shape, place.strides, strict=True)) + 1
        assert place.offset + end * place.dtype.itemsize <= self._size(place.number), place
        return self._memory.untyped_storage(), int(self._starts[place.number]) + place.offset

    def view(self, tensor: int, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Returns the contiguous tensor that begins so many bytes into one."""
        first = int(self._starts[tensor]) + offset
        count = torch.Size(shape).numel() * dtype.itemsize
        return self._memory[first : first + count].view(dtype).view(shape)

    def _size(self, tensor: int) -> int:
        growing, fixed = self._sizes
        return fixed[tensor] if tensor in fixed else self._num_rows * growing[tensor]


def _per_row(sizes: tuple[int, int], num_rows: tuple[int, int]) -> int:
    """Returns bytes that, times the number of rows, are enough for a tensor.

    Of a tensor that has a few rows of its own beside those of the step, one row of the step takes most.
    """
    growth = (sizes[1] - sizes[0]) // (num_rows[1] - num_rows[0])
    of_one = sizes[0] - growth * (num_rows[0] - 1)
    return max(of_one, *(-(-size // count) for size, count in zip(sizes, num_rows, strict=True)))


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
