"""How kernels are called: what each of them needs to be run, noted or replayed, and the checks that all have."""

from __future__ import annotations

import importlib
import math
import struct
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipezoo_core.errors import InsufficientMemoryError, TensorMismatchError
from pipezoo_core.native.memory_pool import MemoryPool
from pipezoo_core.native.packing import Packing, packed_bytes, plain_bytes
from pipezoo_core.native.variants import DTYPES, MODULE, obstacle_to

__all__ = [
    "CPU",
    "CallObserver",
    "KernelCalls",
    "address_of",
    "as_integer",
    "bits",
    "call",
    "check_tensor",
    "is_plain",
    "mismatch",
    "of_packing",
    "shape_of",
]

CPU = torch.device("cpu")
"""Named wherever a tensor is made, because torch's default may be another."""

_POOLED = 2**15  # numbers of a result from which on its memory is kept


class CallObserver(Protocol):
    """Takes calls of kernels, which are not made then."""

    def add(self, name: str, arguments: tuple[float, ...]) -> None:
        """Notes a call.

        Args:
            name: of the kernel, without the dtype.
            arguments: addresses and whole numbers, and floats that the kernel takes as such.
        """
        ...


class KernelCalls:
    """The kernels of one model, as they are called. A step can be recorded: see `recording`.

    A kernel reads memory and knows no tensors. So every tensor of a call is checked before, by `check_tensor`: dtype,
    device, sizes, and that it is contiguous where the kernel takes no strides. Weights that a layer has packed are
    checked once, by `check_packed`. A replayed step was checked when it was recorded. Of the numbers that are indices,
    tokens are checked by the kernels, which give NaN for one that is not in the vocabulary. Positions and pages are not
    checked: a `RaggedBatch` has those that the KV cache's manager lent.

    Args:
        device: where the model runs.
        dtype: of its weights and activations.

    Attributes:
        obstacle: what stands in the way of using them; None if they can be used.
        observer: takes each call while a step is recorded; None where kernels are run.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.obstacle = obstacle_to(device, dtype)
        self.observer: CallObserver | None = None
        self._pool = MemoryPool()
        self._suffix = "" if self.obstacle else f"_{DTYPES[dtype]}"
        self._native: ModuleType | None = None if self.obstacle else importlib.import_module(MODULE)

    def address(self, name: str) -> int:
        """Returns where a kernel lies, for a recorded step."""
        assert self._native is not None
        address: int = self._native.addresses[name + self._suffix]
        return address

    def replay(self, program: int, num_calls: int) -> None:
        """Runs a recorded step: `num_calls` rows of a kernel's address and its arguments."""
        assert self._native is not None
        call(self._native.replay, program, num_calls)

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Returns a tensor for a result. While a step is recorded, torch makes it, so that its dispatcher sees it."""
        if self.observer is not None or math.prod(shape) < _POOLED:
            return torch.empty(shape, dtype=dtype, device=CPU)
        return self._pool.empty(shape, dtype)

    def check_packed(self, packed: Tensor, bias: Tensor | None, shape: tuple[int, int], packing: Packing) -> None:
        """Raises for what is no packed weight of this shape, or no bias of it.

        A layer calls it once: `linear`, `packed_rows` and `multiply_heads` take both as they are.
        """
        is_packed = packing is not Packing.none
        size = packed_bytes(shape, packing) if is_packed else plain_bytes(shape, self.dtype.itemsize)
        check_tensor("a packed weight", packed, torch.uint8, (size,), contiguous=True)
        if bias is not None:
            self._check("a bias", bias, shape[0], contiguous=True)

    def _check(self, kernel: str, x: Tensor, *shape: int, contiguous: bool = False) -> None:
        """Raises for what is not of this shape, in the model's dtype: see `check_tensor`."""
        check_tensor(kernel, x, self.dtype, shape, contiguous=contiguous)

    def _check_rows(self, kernel: str, x: Tensor, size: int) -> None:
        """Raises for what are no rows of this size, in the model's dtype; their dimensions may be of any number."""
        if x.dtype is not self.dtype or x.shape[-1:] != (size,) or not size or not is_plain(x):
            raise mismatch(kernel, x, f"{self.dtype} [..., {size or 'at least 1'}] on the CPU")

    def _run(self, name: str, *arguments: float, is_long: bool = False) -> None:
        """Runs a kernel; a long one as a program of its own, during which other Python threads run."""
        if self.observer is not None:
            self.observer.add(name, arguments)
        elif is_long:
            numbers = np.array([self.address(name), *map(as_integer, arguments)], dtype=np.int64)
            self.replay(numbers.ctypes.data, 1)
        else:
            call(getattr(self._native, name + self._suffix), *arguments)


def call(kernel: Callable[..., None], *arguments: float) -> None:
    """Runs a kernel.

    Raises:
        InsufficientMemoryError: it found no memory for what it works with.
    """
    try:
        kernel(*arguments)
    except MemoryError as error:
        raise InsufficientMemoryError(
            "a kernel found no memory for what it works with", cure="Load with less kv_cache_memory, or free memory."
        ) from error


def mismatch(kernel: str, x: Tensor, allowed: str) -> TensorMismatchError:
    """Returns the error for a tensor that a kernel cannot read."""
    return TensorMismatchError(
        f"the kernel {kernel!r} was given a tensor that it does not compute with",
        found=f"{x.dtype} {list(x.shape)} on {x.device}{_unusual(x)}",
        allowed=allowed,
        cure="Check the sizes and dtypes in the model's module.",
    )


def _unusual(x: Tensor) -> str:
    if x.layout is not torch.strided:
        return f", {x.layout}"
    return ", negated" if x.is_neg() else "" if x.is_contiguous() else ", not contiguous"


def is_plain(x: Tensor) -> bool:
    """Returns whether a tensor's numbers lie in the CPU's memory as its strides say, and mean what they are there."""
    return x.is_cpu and x.layout is torch.strided and not x.is_neg() and not x.is_conj()


def check_tensor(kernel: str, x: Tensor, dtype: torch.dtype, shape: Sequence[int], *, contiguous: bool = False) -> None:
    """Raises where a kernel would take a tensor's numbers for something else, or read beyond them.

    Args:
        kernel: who is given it, and as what, for the error.
        x: the tensor; plain, see `is_plain`.
        dtype: that it has to have.
        shape: likewise; the last dimension has one number at least.
        contiguous: whether it must be.

    Raises:
        TensorMismatchError: it is another.
    """
    is_right = x.dtype is dtype and x.shape == shape and 0 not in shape[-1:] and is_plain(x)
    if not is_right or (contiguous and not x.is_contiguous()):
        sizes = [*shape[:-1], *(size or "at least 1" for size in shape[-1:])]
        allowed = f"{dtype} [{', '.join(map(str, sizes))}]{', contiguous,' if contiguous else ''} on the CPU"
        raise mismatch(kernel, x, allowed)


def shape_of(kernel: str, x: Tensor, num_dimensions: int) -> torch.Size:
    """Returns a tensor's shape.

    Raises:
        TensorMismatchError: it has another number of dimensions.
    """
    if x.dim() != num_dimensions:
        raise mismatch(kernel, x, f"a tensor of {num_dimensions} dimensions")
    return x.shape


def of_packing(kernel: str, packing: Packing) -> str:
    """Returns the name of a kernel for weights that are packed so."""
    return kernel if packing is Packing.none else f"{kernel}_{packing.name}"


def address_of(x: Tensor | None) -> int:
    """Returns where a tensor's numbers begin; 0 where there is none."""
    return 0 if x is None else x.data_ptr()


def as_integer(argument: float) -> int:
    """Returns a kernel's argument in the form in which a recorded step has it."""
    return bits(argument) if isinstance(argument, float) else argument


def bits(number: float) -> int:
    """Returns a float64's bits as an integer, the form in which kernels that read arguments from memory want it."""
    integer: int = struct.unpack("q", struct.pack("d", number))[0]
    return integer
