"""Which kernel does what an operation of torch does, and with which arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pipezoo_core.native.activation import Activation
from pipezoo_core.native.calls import address_of, is_plain

__all__ = ["KernelNotes", "note_kernel"]

aten = torch.ops.aten


class KernelNotes(Protocol):
    """Takes kernels.

    Attributes:
        dtype: that the kernels compute.
    """

    dtype: torch.dtype

    def add(self, name: str, arguments: tuple[float, ...]) -> None:
        """Notes a kernel; see `CallObserver`."""
        ...


def note_kernel(notes: KernelNotes, function: Any, result: Any, args: Sequence[Any], named: dict[str, Any]) -> bool:
    """Notes the kernel that does the same as an operation; returns whether there is one.

    Where there is none, something may have been noted all the same.

    Args:
        notes: take it.
        function: the overload.
        result: what it has returned; the kernel will write it.
        args: what it was given.
        named: likewise, by name.
    """
    note = _KERNELS.get(function)
    return note is not None and named.keys() <= _KEYWORDS.get(function, set()) and note(notes, result, *args, **named)


def _note_add(notes: KernelNotes, result: Tensor, x: Tensor, y: Any, alpha: float = 1.0) -> bool:
    return _note_pair(notes, "add", result, x, y, float(alpha))


def _note_subtract(notes: KernelNotes, result: Tensor, x: Tensor, y: Any, alpha: float = 1.0) -> bool:
    return _note_pair(notes, "add", result, x, y, -float(alpha))


def _note_multiply(notes: KernelNotes, result: Tensor, x: Tensor, y: Any) -> bool:
    if isinstance(y, int | float):
        return _note_each(notes, "scale", result, x, float(y))
    return _note_pair(notes, "multiply", result, x, y)


def _note_divide(notes: KernelNotes, result: Tensor, x: Tensor, y: Any) -> bool:
    """A power of two alone divides as its inverse multiplies."""
    return isinstance(y, int | float) and abs(math.frexp(y)[0]) == 0.5 and _note_multiply(notes, result, x, 1 / y)


def _note_square(notes: KernelNotes, result: Tensor, x: Tensor) -> bool:
    return _note_multiply(notes, result, x, x)


def _note_power(notes: KernelNotes, result: Tensor, x: Tensor, exponent: float) -> bool:
    return exponent == 2 and _note_square(notes, result, x)


def _note_clamp(
    notes: KernelNotes, result: Tensor, x: Tensor, low: float | None = None, high: float | None = None
) -> bool:
    bounds = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return _note_each(notes, "clamp", result, x, *bounds)


def _note_gelu(notes: KernelNotes, result: Tensor, x: Tensor, approximate: str = "none") -> bool:
    kind = Activation.gelu_tanh if approximate == "tanh" else Activation.gelu
    return _note_each(notes, "activate", result, x, kind)


def _note_activation(activation: Activation) -> Callable[..., bool]:
    def note(notes: KernelNotes, result: Tensor, x: Tensor) -> bool:
        return _note_each(notes, "activate", result, x, activation)

    return note


def _note_layer_norm(
    notes: KernelNotes,
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
    if len(shape) != 1 or not _is_plain(notes, y, x, *read) or not all(part.is_contiguous() for part in (x, *read)):
        return False
    size = shape[0]
    addresses = (x.data_ptr(), address_of(weight), address_of(bias), y.data_ptr())
    notes.add("layer_norm", (*addresses, x.numel() // size, size, 1, size, float(eps)))
    return True


def _note_each(notes: KernelNotes, kernel: str, result: Tensor, x: Tensor, *arguments: float) -> bool:
    """Notes what is computed of each number of a tensor."""
    size, stride = _row_of(x)
    if stride is None or not result.is_contiguous() or not _is_plain(notes, result, x):
        return False
    rows = x.numel() // size
    notes.add(kernel, (x.data_ptr(), result.data_ptr(), rows, size, stride, *arguments))
    return True


def _note_pair(notes: KernelNotes, kernel: str, result: Tensor, x: Tensor, y: Any, *arguments: float) -> bool:
    """Notes what is computed of each two numbers of two tensors, or of a tensor's rows and one row."""
    if not isinstance(y, Tensor) or x.shape != result.shape or not _is_plain(notes, result, x, y):
        return False
    if not result.is_contiguous():
        return False
    (size, x_stride), (_, y_stride) = _row_of(x), _row_of(y)
    if y.shape != x.shape:
        y_stride = 0 if y.dim() and y.numel() == y.shape[-1] == size and y.is_contiguous() else None
    if x_stride is None or y_stride is None:
        return False
    addresses = (x.data_ptr(), y.data_ptr(), result.data_ptr())
    notes.add(kernel, (*addresses, x.numel() // size, size, x_stride, y_stride, *arguments))
    return True


def _row_of(x: Tensor) -> tuple[int, int | None]:
    """Returns how many numbers a row of a tensor has, and how far apart rows are; None where they do not lie so."""
    if x.dim() == 0:
        return 1, None
    size = x.shape[-1]
    if x.is_contiguous():
        return size, size
    return size, x.stride(0) if x.dim() == 2 and x.stride(1) == 1 else None


def _is_plain(notes: KernelNotes, *tensors: Tensor) -> bool:
    """Whether these are numbers that the kernels compute."""
    return all(x.dtype is notes.dtype and is_plain(x) and x.numel() > 0 for x in tensors)


def _note_embedding(notes: KernelNotes, result: Tensor, weight: Tensor, tokens: Tensor, *options: Any) -> bool:
    del options  # they matter to training
    are_plain = _is_plain(notes, weight) and is_plain(tokens)
    if not (are_plain and tokens.is_contiguous() and weight.is_contiguous()) or tokens.dtype is not torch.int64:
        return False
    rows = (tokens.data_ptr(), weight.data_ptr(), result.data_ptr(), tokens.numel(), weight.shape[1], len(weight))
    notes.add("embedding", rows)
    return True


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
