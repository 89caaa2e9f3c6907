"""What a module computes, noted kernel by kernel while it runs.

While a step is recorded, its kernels are noted and not run. What a module does outside the kernels is seen through
torch's dispatcher. A few operations have a kernel of their own and views cost nothing. Any other operation is noted as
it is, where it gives the same for the same numbers, at the same places. A number that is read out of a tensor on the
host is an obstacle, and so is what is written to memory from outside the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipezoo_core.native.activation import Activation
from pipezoo_core.native.foreign_call import ForeignCall, Source, TensorPlace, with_each
from pipezoo_core.native.kernels import NativeKernels, bits
from pipezoo_core.native.made_memory import MadeMemory
from pipezoo_core.native.operations import is_view, results_of, why_not_run_again, written_by
from pipezoo_core.native.program import Place

__all__ = ["Recording"]

aten = torch.ops.aten
_READ_ON_THE_HOST = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__contains__}  # the dispatcher misses them
_MAY_COPY = {aten.contiguous.default, aten.flatten.using_ints, aten.reshape.default}
_EMPTY = {aten.empty.memory_format, aten.empty_like.default}


class Recording(TorchDispatchMode):
    """Notes what a module computes while it runs.

    Args:
        kernels: those that are noted.
        inputs: tensors of the step that differ each time.
        like: the operations that were noted of a step with more rows. Of one row torch needs no copy where of more it
            does, and a kernel may do where for more it does not; what was noted then is noted all the same.

    Attributes:
        calls: each kernel's address and arguments.
        places: which arguments lie in tensors that were made.
        foreign: the operations that have no kernel.
        held: the memory from outside that these read.
        made: the memory of the tensors that were made.
        obstacle: what cannot be replayed; None if the notes are complete.
        dtype: that the kernels compute.
    """

    def __init__(self, kernels: NativeKernels, inputs: Sequence[Tensor] = (), like: Sequence[ForeignCall] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.calls: list[list[int]] = []
        self.places: list[Place] = []
        self.foreign: list[ForeignCall] = []
        self.held: list[torch.UntypedStorage] = []
        self.made = MadeMemory()
        self.obstacle: str | None = None
        self.dtype = kernels.dtype
        self._kernels = kernels
        self._inputs = inputs
        self._like = like
        self._reads = _HostReads(self)

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
        found = ((argument, self.made.find(number)) for argument, number in enumerate(numbers))
        self.places += [Place(len(self.calls), argument, *place) for argument, place in found if place is not None]
        self.calls.append(numbers)

    def refuse(self, why: str) -> None:
        """Notes an obstacle; the first one is kept."""
        self.obstacle = self.obstacle or why

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and notes the kernel that does the same, or itself."""
        named = kwargs or {}
        written = written_by(function, args)
        if any(self.made.find_in(x.untyped_storage()) is None for x in written):
            self.refuse(f"{function}, which writes to memory from outside the step")
            return written[0]  # as it is: a recording changes nothing
        try:
            result = function(*args, **named)
        except Exception:  # over numbers that nothing has computed
            self.refuse(str(function))
            raise
        is_foreign = self._was_foreign(function)
        if is_foreign and function in _MAY_COPY and is_view(function, result, args):
            result = result.clone(memory_format=torch.contiguous_format)
        if is_view(function, result, args):
            if function is aten.lift_fresh.default:  # made of Python's numbers; kept, so that nothing else lies there
                self.made.forget(result.untyped_storage())
                self.held.append(result.untyped_storage())
            return result
        if not function._schema.is_mutable:
            for made in results_of(result):
                self.made.add(made.untyped_storage())
        if function not in _EMPTY and (is_foreign or not self._has_kernel(function, result, args, named)):
            self._note_foreign(function, result, args, named)
        return result

    def _was_foreign(self, function: Any) -> bool:
        """Whether at this point of a step with more rows torch computed just this."""
        next_one = self._like[len(self.foreign)] if len(self.foreign) < len(self._like) else None
        return next_one is not None and (next_one.at, next_one.function) == (len(self.calls), function)

    def _has_kernel(self, function: Any, result: Any, args: Any, named: dict[str, Any]) -> bool:
        note = _KERNELS.get(function)
        if note is None or not named.keys() <= _KEYWORDS.get(function, set()):
            return False
        num_calls, num_places = len(self.calls), len(self.places)
        if note(self, result, *args, **named):
            return True
        del self.calls[num_calls:], self.places[num_places:]
        return False

    def _note_foreign(self, function: Any, result: Any, args: Any, named: dict[str, Any]) -> None:
        reason = why_not_run_again(function, result, args, named)
        if reason is not None:
            self.refuse(reason)
            return
        given, by_name = with_each(Tensor, self._place, (tuple(args), tuple(named.items())))
        made = () if function._schema.is_mutable else tuple(self._place(x) for x in results_of(result))
        self.foreign.append(ForeignCall(len(self.calls), function, given, by_name, made))

    def _place(self, x: Tensor) -> TensorPlace:
        """Returns where a tensor lies; memory that is neither made nor an input is held."""
        storage = x.untyped_storage()
        start, first = storage.data_ptr(), x.data_ptr()
        source, number, offset = Source.held, len(self.held), first - start
        if found := self.made.find_in(storage):
            source, number, begin = Source.made, *found
            offset += begin
        elif (found := self._input_at(first)) is not None:
            source, number, offset = Source.input, *found
        else:
            number = next((i for i, held in enumerate(self.held) if held.data_ptr() == start), number)
            if number == len(self.held):
                self.held.append(storage)
        return TensorPlace(source, number, offset, tuple(x.shape), tuple(x.stride()), x.dtype)

    def _input_at(self, address: int) -> tuple[int, int] | None:
        for number, x in enumerate(self._inputs):
            if x.data_ptr() <= address < x.data_ptr() + x.nbytes:
                return number, address - x.data_ptr()
        return None


class _HostReads(TorchFunctionMode):
    """Sees what is read of a tensor without an operation: what Python does with it is done once and never again."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the function."""
        if function in _READ_ON_THE_HOST:
            self._recording.refuse(f"Tensor.{function.__name__}")
        if function is Tensor.contiguous:  # which the dispatcher sees only where there is something to copy
            function = aten.contiguous.default
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
        y_stride = 0 if y.dim() and y.numel() == y.shape[-1] == size and y.is_contiguous() else None
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
