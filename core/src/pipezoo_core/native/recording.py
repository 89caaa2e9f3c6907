"""What a module computes, noted kernel by kernel while it runs.

While a step is recorded, its kernels are noted and not run. What a module does outside the kernels is seen through
torch's dispatcher. A few operations have a kernel of their own and views cost nothing. Any other operation is an
obstacle, and so is a number that is read out of a tensor on the host.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipezoo_core.native.activation import Activation
from pipezoo_core.native.kernels import NativeKernels, bits
from pipezoo_core.native.program import Place

__all__ = ["Recording"]

aten = torch.ops.aten
_READ_ON_THE_HOST = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__contains__}  # the dispatcher misses them
_IN_PLACE = {aten.add_.Tensor, aten.clamp_.default, aten.div_.Tensor, aten.mul_.Tensor}
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
        named = kwargs or {}
        result = function(*args, **named)
        if _is_view(function, result, args):
            return result
        if function not in _IN_PLACE:
            for made in result if isinstance(result, tuple) else (result,):
                if isinstance(made, Tensor):
                    self._make(made.untyped_storage())
        if function in _EMPTY:
            return result
        note = _KERNELS.get(function)
        if note is None or not named.keys() <= _KEYWORDS.get(function, set()) or not note(self, result, *args, **named):
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


def _note_add(recording: Recording, result: Tensor, x: Tensor, y: Any, alpha: float = 1.0) -> bool:
    return _note_pair(recording, "add", result, x, y, float(alpha))


def _note_subtract(recording: Recording, result: Tensor, x: Tensor, y: Any, alpha: float = 1.0) -> bool:
    return _note_pair(recording, "add", result, x, y, -float(alpha))


def _note_multiply(recording: Recording, result: Tensor, x: Tensor, y: Any) -> bool:
    if isinstance(y, int | float):
        return _note_each(recording, "scale", result, x, float(y))
    return _note_pair(recording, "multiply", result, x, y)


def _note_divide(recording: Recording, result: Tensor, x: Tensor, y: Any) -> bool:
    """A power of two alone divides as its inverse multiplies."""
    return isinstance(y, int | float) and abs(math.frexp(y)[0]) == 0.5 and _note_multiply(recording, result, x, 1 / y)


def _note_square(recording: Recording, result: Tensor, x: Tensor) -> bool:
    return _note_multiply(recording, result, x, x)


def _note_power(recording: Recording, result: Tensor, x: Tensor, exponent: float) -> bool:
    return exponent == 2 and _note_square(recording, result, x)


def _note_clamp(
    recording: Recording, result: Tensor, x: Tensor, low: float | None = None, high: float | None = None
) -> bool:
    bounds = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return _note_each(recording, "clamp", result, x, *bounds)


def _note_gelu(recording: Recording, result: Tensor, x: Tensor, approximate: str = "none") -> bool:
    kind = Activation.gelu_tanh if approximate == "tanh" else Activation.gelu
    return _note_each(recording, "activate", result, x, kind)


def _note_activation(activation: Activation) -> Callable[..., bool]:
    def note(recording: Recording, result: Tensor, x: Tensor) -> bool:
        return _note_each(recording, "activate", result, x, activation)

    return note


def _note_layer_norm(
    recording: Recording,
    result: Any,
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *options: Any,
) -> bool:
    del options  # of other libraries
    y = result[0] if isinstance(result, tuple) else result  # mean and deviation matter to training
    read = [parameter for parameter in (weight, bias) if parameter is not None]
    if len(shape) != 1 or not _is_plain(recording, y, x, *read) or not all(part.is_contiguous() for part in (x, *read)):
        return False
    weight_address, bias_address = (0 if part is None else part.data_ptr() for part in (weight, bias))
    size = shape[0]
    addresses = (x.data_ptr(), weight_address, bias_address, y.data_ptr())
    recording.add("layer_norm", (*addresses, x.numel() // size, size, 1, size, float(eps)))
    return True


def _note_each(recording: Recording, kernel: str, result: Tensor, x: Tensor, *arguments: float) -> bool:
    """Notes what is computed of each number of a tensor."""
    size, stride = _row_of(x)
    if stride is None or not result.is_contiguous() or not _is_plain(recording, result, x):
        return False
    rows = x.numel() // size
    recording.add(kernel, (x.data_ptr(), result.data_ptr(), rows, size, stride, *arguments))
    return True


def _note_pair(recording: Recording, kernel: str, result: Tensor, x: Tensor, y: Any, *arguments: float) -> bool:
    """Notes what is computed of each two numbers of two tensors, or of a tensor's rows and one row."""
    if not isinstance(y, Tensor) or x.shape != result.shape or not _is_plain(recording, result, x, y):
        return False
    if not result.is_contiguous():
        return False
    (size, x_stride), (_, y_stride) = _row_of(x), _row_of(y)
    if y.shape != x.shape:
        y_stride = 0 if y.numel() == y.shape[-1] == size and y.is_contiguous() else None
    if x_stride is None or y_stride is None:
        return False
    addresses = (x.data_ptr(), y.data_ptr(), result.data_ptr())
    recording.add(kernel, (*addresses, x.numel() // size, size, x_stride, y_stride, *arguments))
    return True


def _row_of(x: Tensor) -> tuple[int, int | None]:
    """Returns how many numbers a row of a tensor has, and how far apart rows are; None where they do not lie so."""
    if x.dim() == 0:
        return 1, None
    size = x.shape[-1]
    if x.is_contiguous():
        return size, size
    return size, x.stride(0) if x.dim() == 2 and x.stride(1) == 1 else None


def _is_plain(recording: Recording, *tensors: Tensor) -> bool:
    """Whether these are numbers that the kernels compute."""
    return all(x.dtype is recording.dtype and x.is_cpu and x.numel() > 0 for x in tensors)


def _note_embedding(recording: Recording, result: Tensor, weight: Tensor, tokens: Tensor, *options: Any) -> bool:
    del options  # they matter to training
    rows = (tokens.data_ptr(), weight.data_ptr(), result.data_ptr(), tokens.numel(), weight.shape[1], len(weight))
    recording.add("embedding", rows)
    is_plain = tokens.is_contiguous() and weight.is_contiguous() and weight.is_cpu
    return is_plain and tokens.dtype is torch.int64 and weight.dtype is recording.dtype


_KERNELS: dict[Any, Callable[..., bool]] = {
    aten.add.Tensor: _note_add,
    aten.add_.Tensor: _note_add,
    aten.clamp.default: _note_clamp,
    aten.clamp_.default: _note_clamp,
    aten.div.Tensor: _note_divide,
    aten.div_.Tensor: _note_divide,
    aten.embedding.default: _note_embedding,
    aten.gelu.default: _note_gelu,
    aten.layer_norm.default: _note_layer_norm,
    aten.mul.Tensor: _note_multiply,
    aten.mul_.Tensor: _note_multiply,
    aten.native_layer_norm.default: _note_layer_norm,
    aten.pow.Tensor_Scalar: _note_power,
    aten.relu.default: _note_activation(Activation.relu),
    aten.sigmoid.default: _note_activation(Activation.sigmoid),
    aten.silu.default: _note_activation(Activation.silu),
    aten.square.default: _note_square,
    aten.sub.Tensor: _note_subtract,
    aten.tanh.default: _note_activation(Activation.tanh),
}
_KEYWORDS: dict[Any, set[str]] = {  # that the notes know; what else is said by keyword is refused
    aten.add.Tensor: {"alpha"},
    aten.add_.Tensor: {"alpha"},
    aten.gelu.default: {"approximate"},
    aten.sub.Tensor: {"alpha"},
}
