"""Small steps without Python: the kernels that a model's module calls are noted once and then run from the notes.

A decode step of a small model is hundreds of short kernels. Between them Python takes as long as they do, because
each has just driven Python's own data out of the caches. What a module calls depends on the number of rows alone, so
that the calls of one step, with other inputs, are those of the next: a CUDA graph, on a CPU.

What a module does outside the kernels is seen too, through torch's dispatcher. A few operations have a kernel of their
own, views cost nothing, and with any other one the module is run as it is, always.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipezoo_core.native.kernels import NativeKernels, bits

if TYPE_CHECKING:
    from pipezoo_core.kv_cache import KVCacheInputs

__all__ = ["RecordedModule"]

_MAX_ROWS = 64  # with more, Python is a small part of a step
_MAX_PROGRAMS = 16  # numbers of rows that are remembered
_WIDTH = 16  # numbers per call: the kernel's address and its arguments
_ALIGNMENT = 64

aten = torch.ops.aten
_FREE = {  # operations that compute nothing
    aten.alias.default,
    aten.detach.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unsqueeze.default,
    aten.view.default,
}


class Recording(TorchDispatchMode):
    """Notes what a module computes while it runs.

    Attributes:
        calls: each kernel's address and arguments.
        tensors: all that were made; alive, so that no two share an address.
        obstacle: an operation that has no kernel; None if the notes are complete.
    """

    def __init__(self, kernels: NativeKernels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[list[int]] = []
        self.tensors: list[Tensor] = []
        self.obstacle: str | None = None
        self._kernels = kernels

    def __enter__(self) -> Recording:
        self._kernels.recording = self
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._kernels.recording = None
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def add(self, name: str, arguments: tuple[float, ...]) -> None:
        """Notes a kernel."""
        numbers = [bits(a) if isinstance(a, float) else a for a in arguments]
        self.calls.append([self._kernels.address(name), *numbers])

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and notes the kernel that does the same."""
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.tensors.append(result)
        if function in _FREE:
            return result
        note = _KERNELS.get(function)
        if note is None or kwargs or not note(self, result, *args):
            self.obstacle = str(function)
        return result


def _note_add(recording: Recording, result: Tensor, x: Tensor, y: Any) -> bool:
    if not isinstance(y, Tensor) or x.shape != y.shape or not (x.is_contiguous() and y.is_contiguous()):
        return False
    recording.add("add", (x.data_ptr(), y.data_ptr(), result.data_ptr(), x.numel()))
    return x.dtype is y.dtype


def _note_embedding(recording: Recording, result: Tensor, weight: Tensor, tokens: Tensor, *options: Any) -> bool:
    del options  # they matter to training
    rows = (tokens.data_ptr(), weight.data_ptr(), result.data_ptr(), tokens.numel(), weight.shape[1])
    recording.add("embedding", rows)
    return tokens.dtype is torch.int64


_KERNELS: dict[Any, Callable[..., bool]] = {
    aten.add.Tensor: _note_add,
    aten.embedding.default: _note_embedding,
}


@dataclass(frozen=True, slots=True)
class _Program:
    """A step with a fixed number of rows.

    Attributes:
        calls: int64 [num_calls, _WIDTH].
        inputs: for each input, where in `calls` its address stands.
        output: hidden states, in `arena`.
    """

    calls: np.ndarray
    inputs: tuple[np.ndarray, ...]
    output: Tensor


class RecordedModule:
    """A decoder's module; its small steps are recorded and replayed.

    Args:
        module: maps tokens [T] and `KVCacheInputs` to hidden states [T, hidden_size].
        kernels: those that the module's layers and attention use.
    """

    def __init__(self, module: Callable[[Tensor, KVCacheInputs[Any]], Tensor], kernels: NativeKernels) -> None:
        self.module = module
        self.obstacle: str | None = None
        self._kernels = kernels
        self._programs: dict[int, _Program] = {}

    def __call__(self, tokens: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, hidden_size], valid until the next call."""
        if self.obstacle or len(tokens) > _MAX_ROWS:
            return self.module(tokens, kv)
        inputs = (tokens.data_ptr(), kv.positions.data_ptr(), kv.plan.address)
        program = self._programs.get(len(tokens))
        if program is None:
            return self._record(tokens, kv, inputs)
        for places, address in zip(program.inputs, inputs, strict=True):
            program.calls.put(places, address)
        self._kernels.replay(program.calls.ctypes.data, len(program.calls))
        return program.output

    def _record(self, tokens: Tensor, kv: KVCacheInputs[Any], inputs: tuple[int, ...]) -> Tensor:
        with Recording(self._kernels) as recording:
            output = self.module(tokens, kv)
        self.obstacle = recording.obstacle
        if self.obstacle is None:
            if len(self._programs) == _MAX_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            self._programs[len(tokens)] = _program(recording, output, inputs)
        return output


def _program(recording: Recording, output: Tensor, inputs: tuple[int, ...]) -> _Program:
    """Moves the step's tensors into one piece of memory, where those that are not alive together share places."""
    calls = np.zeros((len(recording.calls), _WIDTH), dtype=np.int64)
    for row, call in zip(calls, recording.calls, strict=True):
        row[: len(call)] = call
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in recording.tensors) if s.nbytes()}
    lifetimes = {}
    for address, size in storages.items():
        users = np.nonzero(((calls >= address) & (calls < address + size)).any(axis=1))[0]
        if len(users):
            lifetimes[address] = (users[0], users[-1])
    lifetimes[output.untyped_storage().data_ptr()] = (lifetimes[output.untyped_storage().data_ptr()][0], len(calls))
    places = _arrange(lifetimes, storages)
    end = max(places[address] + storages[address] for address in places)
    arena = torch.empty(end + _ALIGNMENT, dtype=torch.uint8)
    start = -arena.data_ptr() % _ALIGNMENT
    moved = calls.copy()
    for address, place in places.items():
        inside = (calls >= address) & (calls < address + storages[address])
        moved[inside] += arena.data_ptr() + start + place - address
    at = start + places[output.untyped_storage().data_ptr()]
    return _Program(
        calls=moved,
        inputs=tuple(np.nonzero((calls == address).ravel())[0] for address in inputs),
        output=arena[at : at + output.nbytes].view(output.dtype).view(output.shape),
    )


def _arrange(lifetimes: dict[int, tuple[int, int]], sizes: dict[int, int]) -> dict[int, int]:
    """Gives each tensor the first place that is free while it lives.

    With sizes 64, 128 and 64, alive during calls 0 to 1, 1 to 2 and 2 to 3, the places are 0, 64 and 0.
    """
    places: dict[int, int] = {}
    for address, (first, last) in sorted(lifetimes.items(), key=lambda item: item[1]):
        neighbours = sorted(
            (places[other], places[other] + sizes[other])
            for other in places
            if lifetimes[other][0] <= last and first <= lifetimes[other][1]
        )
        place = 0
        for begin, end in neighbours:
            if begin - place >= sizes[address]:
                break
            place = max(place, -(-end // _ALIGNMENT) * _ALIGNMENT)
        places[address] = place
    return places
