"""What a module computes, noted kernel by kernel while it runs.

While a step is recorded, its kernels are noted and not run. What a module does outside the kernels is seen through
torch's dispatcher. A few operations have a kernel of their own and views cost nothing. Any other operation is noted as
it is, where it gives the same for the same numbers, at the same places. A number that is read out of a tensor on the
host is an obstacle, and so is what is written to memory from outside the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipezoo_core.native.calls import as_integer
from pipezoo_core.native.foreign_call import ForeignCall, Source, TensorPlace, each_of, with_each
from pipezoo_core.native.kernel_notes import note_kernel
from pipezoo_core.native.kernels import NativeKernels
from pipezoo_core.native.made_memory import MadeMemory
from pipezoo_core.native.operations import is_view, why_not_run_again, written_by
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
        numbers = [self._kernels.address(name), *map(as_integer, arguments)]
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
            for made in each_of(Tensor, result):
                self.made.add(made.untyped_storage())
        if function not in _EMPTY and (is_foreign or not self._has_kernel(function, result, args, named)):
            self._note_foreign(function, result, args, named)
        return result

    def _was_foreign(self, function: Any) -> bool:
        """Whether at this point of a step with more rows torch computed just this."""
        next_one = self._like[len(self.foreign)] if len(self.foreign) < len(self._like) else None
        return next_one is not None and (next_one.at, next_one.function) == (len(self.calls), function)

    def _has_kernel(self, function: Any, result: Any, args: Any, named: dict[str, Any]) -> bool:
        num_calls, num_places = len(self.calls), len(self.places)
        if note_kernel(self, function, result, args, named):
            return True
        del self.calls[num_calls:], self.places[num_places:]
        return False

    def _note_foreign(self, function: Any, result: Any, args: Any, named: dict[str, Any]) -> None:
        reason = why_not_run_again(function, result, args, named)
        if reason is not None:
            self.refuse(reason)
            return
        given, by_name = with_each(Tensor, self._place, (tuple(args), tuple(named.items())))
        made = () if function._schema.is_mutable else tuple(self._place(x) for x in each_of(Tensor, result))
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
