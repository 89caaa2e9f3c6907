"""Small steps without Python: the kernels that a model's module calls are noted once and then run from the notes.

A decode step of a small model is hundreds of short kernels. Between them Python takes as long as they do, because
each has just driven Python's own data out of the caches. What a module calls depends on the number of rows alone, so
that the calls of one step, with other inputs, are those of the next: a CUDA graph, on a CPU.

What a module does outside the kernels is seen too, through torch's dispatcher. A few operations have a kernel of their
own, and views cost nothing. Any other operation is an obstacle. So is what a module reads of the step that may differ
the next time: the requests' lists and their number, a number taken out of a tensor, a tensor that is not where it was.
With an obstacle, steps of this number of rows are run as they are from then on, and the logger "pipezoo" says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipezoo_core.native.kernels import NativeKernels, bits
from pipezoo_core.native.memory_pool import aligned, aligned_bytes

if TYPE_CHECKING:
    from pipezoo_core.kv_cache import KVCacheInputs

__all__ = ["RecordedModule"]

_LOGGER = logging.getLogger("pipezoo")

_MAX_ROWS = 64  # with more, Python is a small part of a step
_MAX_PROGRAMS = 16  # numbers of rows that are remembered
_WIDTH = 16  # numbers per call: the kernel's address and its arguments

aten = torch.ops.aten
_OF_EACH_STEP = {"positions", "context_lengths", "key_pages", "value_pages", "plan"}  # with as many rows, and addresses
_READ_ON_THE_HOST = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__contains__}  # the dispatcher misses them
_IN_PLACE = {aten.add_.Tensor}
_EMPTY = {aten.empty.memory_format, aten.empty_like.default}


class Recording(TorchDispatchMode):
    """Notes what a module computes while it runs.

    A tensor's memory may be used again for a later one, so that an address alone does not tell which one is meant:
    each gets a number when it is made, and an address means the last one made there.

    Attributes:
        calls: each kernel's address and arguments.
        places: which arguments lie in tensors that were made: call, argument, the tensor's number, bytes into it.
        sizes: of the tensors, in bytes.
        obstacle: what cannot be replayed; None if the notes are complete.
        dtype: that the kernels compute.
    """

    def __init__(self, kernels: NativeKernels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.calls: list[list[int]] = []
        self.places: list[tuple[int, int, int, int]] = []
        self.sizes: list[int] = []
        self.obstacle: str | None = None
        self.dtype = kernels.dtype
        self._kernels = kernels
        self._made: dict[range, int] = {}
        self._reads = _HostReads(self)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would have its compiler keep away from us, and import it for that: a second, and 80 MB."""
        return False

    def __enter__(self) -> Recording:
        self._kernels.recording = self
        self._reads.__enter__()  # type: ignore[no-untyped-call]  # likewise
        super().__enter__()  # type: ignore[no-untyped-call]  # likewise
        return self

    def __exit__(self, *error: Any) -> None:
        self._kernels.recording = None
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # likewise
        self._reads.__exit__(*error)  # type: ignore[no-untyped-call]  # likewise

    def add(self, name: str, arguments: tuple[float, ...]) -> None:
        """Notes a kernel."""
        numbers = [self._kernels.address(name), *(bits(a) if isinstance(a, float) else a for a in arguments)]
        found = ((argument, self.find(number)) for argument, number in enumerate(numbers))
        self.places += [(len(self.calls), argument, *place) for argument, place in found if place is not None]
        self.calls.append(numbers)

    def refuse(self, why: str) -> None:
        """Notes an obstacle; the first one is kept."""
        self.obstacle = self.obstacle or why

    def find(self, address: int) -> tuple[int, int] | None:
        """Returns the number of the tensor that an address is in, and how many bytes into it."""
        made = self._made.items()
        return next(((n, address - span.start) for span, n in made if span.start <= address < span.stop), None)

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
        made = range(storage.data_ptr(), storage.data_ptr() + storage.nbytes())
        gone = [span for span in self._made if span.start < made.stop and made.start < span.stop]
        for span in gone:
            del self._made[span]
        self._made[made] = len(self.sizes)
        self.sizes.append(len(made))


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


class _WatchedStep:
    """A step as the module sees it while it is recorded: whatever may differ for as many rows is an obstacle."""

    def __init__(self, kv: KVCacheInputs[Any], recording: Recording) -> None:
        self._kv = kv
        self._recording = recording

    def __getattr__(self, name: str) -> Any:
        if name not in _OF_EACH_STEP:
            self._recording.refuse(f"the step's {name}")
        return getattr(self._kv, name)


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


@dataclass(slots=True)
class _Program:
    """A step with a fixed number of rows.

    Attributes:
        calls: int64 [num_calls, _WIDTH].
        inputs: for each input, where in `calls` its address stands.
        made: where in `calls` addresses of tensors stand that are made, and how far these are into the memory for them.
        size: of that memory, in bytes.
        start: how far the hidden states are into it.
        output: the hidden states.
    """

    calls: np.ndarray
    inputs: tuple[np.ndarray, ...]
    made: tuple[np.ndarray, np.ndarray]
    size: int
    start: int
    output: Tensor

    def use(self, memory: Tensor) -> None:
        """Makes the tensors in `memory` from now on, which begins on a line of the caches."""
        places, offsets = self.made
        self.calls.put(places, memory.data_ptr() + offsets)
        self.output = memory[self.start : self.start + self.output.nbytes].view(self.output.dtype).view_as(self.output)


class RecordedModule:
    """A decoder's module; its small steps are recorded and replayed.

    Args:
        module: maps tokens [T] and `KVCacheInputs` to hidden states [T, hidden_size].
        kernels: those that the module's layers and attention use.

    Attributes:
        obstacles: by their number of rows, why steps are not replayed.
    """

    def __init__(self, module: Callable[[Tensor, KVCacheInputs[Any]], Tensor], kernels: NativeKernels) -> None:
        self.module = module
        self.obstacles: dict[int, str] = {}
        self._kernels = kernels
        self._programs: dict[int, _Program] = {}
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")  # of all programs: one runs at a time

    def __call__(self, tokens: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, hidden_size], valid until the next call."""
        if len(tokens) > _MAX_ROWS or len(tokens) in self.obstacles:
            return self.module(tokens, kv)
        inputs = (tokens.data_ptr(), kv.positions.data_ptr(), kv.plan.address)
        program = self._programs.get(len(tokens))
        if program is None:
            return self._record(tokens, kv, inputs)
        self._programs[len(tokens)] = self._programs.pop(len(tokens))  # the last one used is the last to be forgotten
        for places, address in zip(program.inputs, inputs, strict=True):
            program.calls.put(places, address)
        self._kernels.replay(program.calls.ctypes.data, len(program.calls))
        return program.output

    def _record(self, tokens: Tensor, kv: KVCacheInputs[Any], inputs: tuple[int, ...]) -> Tensor:
        with Recording(self._kernels) as recording:
            output = self.module(tokens, cast("KVCacheInputs[Any]", _WatchedStep(kv, recording)))
        if recording.find(output.data_ptr()) is None or not output.is_contiguous():
            recording.refuse("a result that is no whole tensor of the step")
        obstacle = recording.obstacle or _foreign(recording, tokens, kv.positions, inputs)
        if obstacle is not None:
            self._refuse(len(tokens), obstacle)
        else:
            if len(self._programs) == _MAX_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            program = self._programs[len(tokens)] = _program(recording, output, inputs)
            moved = [program]
            if program.size > len(self._memory):
                self._memory, moved = torch.from_numpy(aligned_bytes(program.size)), [*self._programs.values()]
            for one in moved:
                one.use(self._memory)
        return output

    def _refuse(self, num_rows: int, obstacle: str) -> None:
        if obstacle not in self.obstacles.values():
            what = f"{num_rows} row{'s' if num_rows > 1 else ''}"
            _LOGGER.warning("the model's steps of %s are not replayed, which is slower: %s", what, obstacle)
        self.obstacles[num_rows] = obstacle


def _foreign(recording: Recording, tokens: Tensor, positions: Tensor, inputs: tuple[int, ...]) -> str | None:
    """Returns what stands in the way where a kernel reads of the step what will not be where it is now."""
    storages = [tensor.untyped_storage() for tensor in (tokens, positions)]  # with all other integers of the step
    spans = [range(storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for storage in storages]
    arguments = (number for call in recording.calls for number in call[1:] if number not in inputs)
    is_foreign = any(number in span for number in arguments for span in spans)
    return "a tensor of the step other than tokens and positions" if is_foreign else None


def _program(recording: Recording, output: Tensor, inputs: tuple[int, ...]) -> _Program:
    """Gives the step's tensors places in one piece of memory; those that are not alive together may share them."""
    calls = np.zeros((len(recording.calls), _WIDTH), dtype=np.int64)
    for row, numbers in zip(calls, recording.calls, strict=True):
        row[: len(numbers)] = numbers
    found = recording.find(output.data_ptr())
    assert found is not None
    lifetimes: dict[int, tuple[int, int]] = {}
    for call, _, tensor, _ in [*recording.places, (len(calls), 0, *found)]:
        lifetimes[tensor] = (lifetimes.get(tensor, (call, call))[0], call)
    starts = _arrange(lifetimes, recording.sizes)
    places = [call * _WIDTH + argument for call, argument, _, _ in recording.places]
    offsets = [starts[tensor] + offset for _, _, tensor, offset in recording.places]
    return _Program(
        calls,
        inputs=tuple(np.nonzero((calls == address).ravel())[0] for address in inputs),
        made=(np.array(places), np.array(offsets)),
        size=max(start + recording.sizes[tensor] for tensor, start in starts.items()),
        start=starts[found[0]] + found[1],
        output=output,
    )


def _arrange(lifetimes: Mapping[int, tuple[int, int]], sizes: Sequence[int]) -> dict[int, int]:
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
