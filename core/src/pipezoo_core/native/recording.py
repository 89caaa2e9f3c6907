"""Steps without Python: the kernels that a model's module calls are noted once and then run from the notes.

A decode step of a small model is hundreds of short kernels. Between them Python takes as long as they do, because
each has just driven Python's own data out of the caches, and each would hand the interpreter's lock to other threads.
What a module calls is the same for every step, but for what is in proportion to the number of rows: see `program`. A
CUDA graph, on a CPU.

While a step is recorded, its kernels are noted and not run. What a module does outside the kernels is seen through
torch's dispatcher. A few operations have a kernel of their own and views cost nothing. Any other operation is an
obstacle, and so is what a module reads of the step that may differ the next time, be it on the host (the requests'
lists, their number, a number out of a tensor) or in a tensor. With an obstacle, steps are run as they are, and the
logger "pipezoo" says so.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipezoo_core.native.kernels import NativeKernels, bits
from pipezoo_core.native.program import Notes, Place, Program

if TYPE_CHECKING:
    from pipezoo_core.kv_cache import KVCacheInputs

__all__ = ["RecordedModule"]

_LOGGER = logging.getLogger("pipezoo")

_MAX_REASON = 200  # characters
_FEW_ROWS = 2  # of the smaller step that is recorded: with one, strides say nothing
_MAX_CHECKED = 64  # rows of a step that is recorded, too, to see whether it is as the two say

aten = torch.ops.aten
_OF_ANY_STEP = {"positions", "context_lengths", "key_pages", "value_pages", "plan"}  # as many rows, or addresses
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


class _WatchedStep:
    """A step as the module sees it while it is recorded: whatever may differ for as many rows is an obstacle."""

    def __init__(self, kv: KVCacheInputs[Any], recording: Recording) -> None:
        self._kv = kv
        self._recording = recording

    def __getattr__(self, name: str) -> Any:
        if name not in _OF_ANY_STEP:
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


class RecordedModule:
    """A decoder's module; its steps are recorded once, and replayed.

    Args:
        module: maps tokens [T] and `KVCacheInputs` to hidden states [T, hidden_size].
        kernels: those that the module's layers and attention use.
        max_rows: most rows of a step.

    Attributes:
        obstacles: by their number of rows, why steps are not replayed.
    """

    def __init__(
        self, module: Callable[[Tensor, KVCacheInputs[Any]], Tensor], kernels: NativeKernels, max_rows: int
    ) -> None:
        self.module = module
        self.obstacles: dict[int, str] = {}
        self._kernels = kernels
        self._max_rows = max(max_rows, _FEW_ROWS + 1)
        self._program: Program | None = None
        self._obstacle: str | None = None  # to all steps
        self._checked: set[int] = set()

    def __call__(self, tokens: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, hidden_size], valid until the next call."""
        num_rows = len(tokens)
        if num_rows not in self._checked:
            self._check(num_rows, kv)
        if self._program is None or num_rows in self.obstacles:
            return self.module(tokens, kv)
        inputs = (tokens.data_ptr(), kv.positions.data_ptr(), kv.plan.address)
        address, hidden = self._program.prepare(num_rows, inputs)
        self._kernels.replay(address, self._program.num_calls)
        return hidden

    def _check(self, num_rows: int, kv: KVCacheInputs[Any]) -> None:
        """Finds out whether steps of so many rows can be replayed; of many, what holds for the most holds for all."""
        self._checked.add(num_rows)
        obstacle = self._obstacle
        if self._program is None and obstacle is None:
            obstacle = self._obstacle = self._why_not(lambda: self._record(kv))
        if obstacle is None and num_rows <= _MAX_CHECKED:
            obstacle = self._why_not(lambda: self._compare(num_rows, kv))
        if obstacle is None:
            return
        if obstacle not in self.obstacles.values():
            what = f"{num_rows} row{'s' if num_rows > 1 else ''}"
            _LOGGER.warning("the model's steps of %s are not replayed, which is slower: %s", what, obstacle)
        self.obstacles[num_rows] = obstacle

    def _why_not(self, act: Callable[[], None]) -> str | None:
        try:
            act()
        except ValueError as error:
            return str(error)
        return None

    def _record(self, kv: KVCacheInputs[Any]) -> None:
        few, many = (self._notes_of(num_rows, kv) for num_rows in (_FEW_ROWS, self._max_rows))
        self._program = Program(few, many)

    def _compare(self, num_rows: int, kv: KVCacheInputs[Any]) -> None:
        assert self._program is not None
        self._program.check(self._notes_of(num_rows, kv))

    def _notes_of(self, num_rows: int, kv: KVCacheInputs[Any]) -> Notes:
        """Records a step of so many rows, whose inputs are zeros.

        Raises:
            ValueError: it cannot be replayed.
        """
        integers = torch.zeros(3, num_rows, dtype=torch.int64, device="cpu")
        tokens, positions, context_lengths = integers
        plan = torch.zeros(1, dtype=torch.int64, device="cpu")
        step = replace(kv, positions=positions, context_lengths=context_lengths, plan=_Plan(plan.data_ptr()))
        inputs = (tokens.data_ptr(), positions.data_ptr(), plan.data_ptr())
        with Recording(self._kernels) as recording:
            output = self._output(recording, tokens, step)
        found = None if output is None else recording.find(output.data_ptr())
        if output is None or found is None or not output.is_contiguous():
            recording.refuse("a result that is no whole tensor of the step")
        obstacle = recording.obstacle or _foreign(recording, integers, inputs)
        if output is None or found is None or obstacle is not None:
            raise ValueError(obstacle)
        return Notes(
            num_rows=num_rows,
            calls=recording.calls,
            places=recording.places,
            inputs=[_arguments_that_are(address, recording.calls) for address in inputs],
            sizes=recording.sizes,
            output=found,
            row=(tuple(output.shape[1:]), output.dtype),
        )

    def _output(self, recording: Recording, tokens: Tensor, step: KVCacheInputs[Any]) -> Tensor | None:
        """Returns what the module returns; None where it raises over numbers that nothing has computed."""
        try:
            return self.module(tokens, cast("KVCacheInputs[Any]", _WatchedStep(step, recording)))
        except Exception as error:  # whatever the module's own code may raise
            recording.refuse(f"while it is recorded the module raises {type(error).__name__}: {error}"[:_MAX_REASON])
            return None


class _Plan(NamedTuple):
    """What a kernel is told of the step that is recorded: nothing, at an address that is seen again in the notes."""

    address: int


def _arguments_that_are(address: int, calls: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    return [(i, j) for i, numbers in enumerate(calls) for j, number in enumerate(numbers) if number == address]


def _foreign(recording: Recording, integers: Tensor, inputs: tuple[int, ...]) -> str | None:
    """Returns what stands in the way where a kernel reads of the step what will not be where it is now."""
    span = range(integers.data_ptr(), integers.data_ptr() + integers.nbytes)
    arguments = (number for call in recording.calls for number in call[1:] if number not in inputs)
    is_foreign = any(number in span for number in arguments)
    return "a tensor of the step other than tokens and positions" if is_foreign else None
