"""What a module computes, noted kernel by kernel while it runs.

While a step is recorded, its kernels are noted and not run. What a module does outside the kernels is seen through
torch's dispatcher. A few operations have a kernel of their own and views cost nothing. Any other operation is an
obstacle, and so is a number that is read out of a tensor on the host.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipezoo_core.native.kernels import NativeKernels, bits
from pipezoo_core.native.program import Place

__all__ = ["Recording"]

aten = torch.ops.aten
_READ_ON_THE_HOST = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__contains__}  # the dispatcher misses them
_IN_PLACE = {aten.add_.Tensor}
_EMPTY = {aten.empty.memory_format, aten.empty_like.default}


class Recording(TorchDispatchMode):
    """Notes what a module computes while it runs.

    A tensor's memory may be used again for a later one, so that an address alone does not tell which one is meant:
    each gets a number when it is made, and an address means the last one made there.

    Attributes:
        calls: each kernel's address and arguments.
        places: which arguments lie in tensors that were made.
        sizes: of the tensors, in bytes.
        obstacle: what cannot be replayed; None if the notes are complete.
        dtype: that the kernels compute.
    """

    def __init__(self, kernels: NativeKernels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.calls: list[list[int]] = []
        self.places: list[Place] = []
        self.sizes: list[int] = []
        self.obstacle: str | None = None
        self.dtype = kernels.dtype
        self._kernels = kernels
        self._reads = _HostReads(self)
        self._starts: list[int] = []  # of the tensors that lie there now, in the order of their addresses
        self._made: list[tuple[int, int]] = []  # their ends and numbers

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would have its compiler keep away from us, and import it for that: a second, and 80 MB."""
        return False

    def __enter__(self) -> Recording:
        self._kernels.observer = self
        self._reads.__enter__()  # type: ignore[no-untyped-call]  # likewise
        super().__enter__()  # type: ignore[no-untyped-call]  # likewise
        return self

    def __exit__(self, *error: Any) -> None:
        self._kernels.observer = None
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # likewise
        self._reads.__exit__(*error)  # type: ignore[no-untyped-call]  # likewise

    def add(self, name: str, arguments: tuple[float, ...]) -> None:
        """Notes a kernel."""
        numbers = [self._kernels.address(name), *(bits(a) if isinstance(a, float) else a for a in arguments)]
        found = ((argument, self.find(number)) for argument, number in enumerate(numbers))
        self.places += [Place(len(self.calls), argument, *place) for argument, place in found if place is not None]
        self.calls.append(numbers)

    def refuse(self, why: str) -> None:
        """Notes an obstacle; the first one is kept."""
        self.obstacle = self.obstacle or why

    def find(self, address: int) -> tuple[int, int] | None:
        """Returns the number of the tensor that an address is in, and how many bytes into it."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._made[at][0]:
            return None
        return self._made[at][1], address - self._starts[at]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and notes the kernel that does the same."""
        result = function(*args, **(kwargs or {}))
        if _is_view(function, result, args):
            return result
        if isinstance(result, Tensor) and function not in _IN_PLACE:
            self._make(result.untyped_storage())
        if function in _EMPTY:
            return result
        note = _KERNELS.get(function)
        if note is None or kwargs or not note(self, result, *args):
            self.refuse(str(function))
        return result

    def _make(self, storage: torch.UntypedStorage) -> None:
        start, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        at = bisect_right(self._starts, start)
        first = at - 1 if at and self._made[at - 1][0] > start else at
        last = first
        while last < len(self._starts) and self._starts[last] < end:  # these are gone: the memory is used again
            last += 1
        self._starts[first:last] = [start]
        self._made[first:last] = [(end, len(self.sizes))]
        self.sizes.append(end - start)


def _is_view(function: Any, result: Any, args: tuple[Any, ...]) -> bool:
    """Whether the results lie where the operation's only tensor lies, and where it always will: nothing is computed."""
    tensors = [x for x in args if isinstance(x, Tensor)]
    if len(tensors) != 1 or function._schema.is_mutable:
        return False
    memory = tensors[0].untyped_storage().data_ptr()
    results = result if isinstance(result, list | tuple) else (result,)
    return all(isinstance(x, Tensor) and x.untyped_storage().data_ptr() == memory for x in results)


class _HostReads(TorchFunctionMode):
    """Sees what is read of a tensor without an operation: what Python does with it is done once and never again."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the function."""
        if function in _READ_ON_THE_HOST:
            self._recording.refuse(f"Tensor.{function.__name__}")
        return function(*args, **(kwargs or {}))


def _note_add(recording: Recording, result: Tensor, x: Tensor, y: Any) -> bool:
    if not isinstance(y, Tensor) or x.shape != y.shape or not (x.is_contiguous() and y.is_contiguous()):
        return False
    recording.add("add", (x.data_ptr(), y.data_ptr(), result.data_ptr(), x.numel()))
    return x.dtype is y.dtype is recording.dtype and x.is_cpu and y.is_cpu


def _note_embedding(recording: Recording, result: Tensor, weight: Tensor, tokens: Tensor, *options: Any) -> bool:
    del options  # they matter to training
    rows = (tokens.data_ptr(), weight.data_ptr(), result.data_ptr(), tokens.numel(), weight.shape[1], len(weight))
    recording.add("embedding", rows)
    is_plain = tokens.is_contiguous() and weight.is_contiguous() and weight.is_cpu
    return is_plain and tokens.dtype is torch.int64 and weight.dtype is recording.dtype


_KERNELS: dict[Any, Callable[..., bool]] = {
    aten.add.Tensor: _note_add,
    aten.add_.Tensor: _note_add,
    aten.embedding.default: _note_embedding,
}
