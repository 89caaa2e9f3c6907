"""Steps without Python: the kernels that a model's module calls are noted once and then run from the notes.

A decode step of a small model is hundreds of short kernels. Between them Python takes as long as they do, because
each has just driven Python's own data out of the caches, and each would hand the interpreter's lock to other threads.
What a module calls is the same for every step, but for what is in proportion to the number of rows: see `program`. A
CUDA graph, on a CPU.

A `Recording` finds obstacles in what the module computes. What it reads of the step that may differ the next time is
one, too, be it on the host (the requests' lists, their number) or in a tensor. With an obstacle, steps are run as they
are, and the logger "pipezoo" says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.native import NativeKernels, Notes, Program, Recording, UnforeseenShapeError
from pipezoo_core.recurrence import StateStep

__all__ = ["RecordedModule"]

_LOGGER = logging.getLogger("pipezoo")

_MAX_REASON = 200  # characters
_FEW_ROWS = 2  # of the smaller step that is recorded: with one, strides say nothing
_MAX_CHECKED = 64  # rows of a step that is recorded, too, to see whether it is as the two say
# as many rows, or addresses:
_OF_ANY_STEP = {"positions", "context_lengths", "key_pages", "value_pages", "plans", "states", "state_step"}


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
        inputs = (tokens, kv.positions, kv.context_lengths)
        addresses = (*(x.data_ptr() for x in inputs), *(plan.address for plan in kv.plans), kv.state_step.address)
        stretches, hidden = self._program.prepare(num_rows, addresses, inputs)
        try:
            for stretch in stretches:
                if stretch.num_calls:
                    self._kernels.replay(stretch.address, stretch.num_calls)
                if stretch.then is not None:
                    stretch.then()
        except UnforeseenShapeError as error:
            obstacle = f"{error}, whose result's shape depends on numbers"
            self._give_up(obstacle, num_rows, kv)
            if any(kv.states):
                raise UnsupportedModelError(
                    f"{obstacle}, and layers have changed their states already",
                    cure="Load the model with enforce_eager=True.",
                ) from error
            return self.module(tokens, kv)
        return hidden

    def _give_up(self, obstacle: str, num_rows: int, kv: KVCacheInputs[Any]) -> None:
        """Runs all later steps as they are, since one could not be replayed to its end."""
        self._program, self._obstacle = None, obstacle
        self._checked.clear()
        self._check(num_rows, kv)

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations of a replayed step that torch computes, since they have no kernel, in their order."""
        return () if self._program is None else self._program.operations

    def obstacle_to(self, num_rows: int, kv: KVCacheInputs[Any]) -> str | None:
        """Returns why steps of so many rows cannot be replayed; of many, what holds for the most holds for all.

        Args:
            num_rows: of the steps.
            kv: a step. Its pages and the number of its layers matter, and nothing else.
        """
        if self._program is None and self._obstacle is None:
            self._obstacle = self._why_not(lambda: self._record(kv))
        if self._obstacle is None and num_rows <= _MAX_CHECKED:
            return self._why_not(lambda: self._compare(num_rows, kv))
        return self._obstacle

    def _check(self, num_rows: int, kv: KVCacheInputs[Any]) -> None:
        """Notes what stands in the way of steps of so many rows, and says so where it is new."""
        self._checked.add(num_rows)
        obstacle = self.obstacle_to(num_rows, kv)
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
        plans = torch.zeros(len(kv.plans) + 1, dtype=torch.int64, device="cpu")
        stand_ins = tuple(_Plan(plan.data_ptr(), num_rows) for plan in plans)
        of_attention, of_states = stand_ins[:-1], cast("StateStep", stand_ins[-1])
        lengths = {"positions": positions, "context_lengths": context_lengths}
        step = replace(kv, **lengths, plans=of_attention, state_step=of_states)
        inputs = (*(x.data_ptr() for x in integers), *(plan.address for plan in stand_ins))
        like = self._program.foreign if self._program is not None and num_rows == 1 else ()
        with Recording(self._kernels, (tokens, positions, context_lengths), like) as recording:
            output = self._output(recording, tokens, step)
        found = None if output is None else recording.made.find(output.data_ptr())
        if output is None or found is None or not output.is_contiguous():
            recording.refuse("a result that is no whole tensor of the step")
        obstacle = recording.obstacle or _part_of_the_inputs(recording, integers, inputs)
        if output is None or found is None or obstacle is not None:
            raise ValueError(obstacle)
        return Notes(
            num_rows=num_rows,
            calls=recording.calls,
            places=recording.places,
            inputs=[_arguments_that_are(address, recording.calls) for address in inputs],
            sizes=recording.made.sizes,
            output=found,
            row=(tuple(output.shape[1:]), output.dtype),
            foreign=recording.foreign,
            held=recording.held,
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
    num_rows: int


def _arguments_that_are(address: int, calls: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    return [(i, j) for i, numbers in enumerate(calls) for j, number in enumerate(numbers) if number == address]


def _part_of_the_inputs(recording: Recording, integers: Tensor, inputs: tuple[int, ...]) -> str | None:
    """Returns what stands in the way where a kernel reads of an input something else than all of it."""
    start, end = integers.data_ptr(), integers.data_ptr() + integers.nbytes
    inside = (number for call in recording.calls for number in call[1:] if start <= number < end)
    is_part = any(number not in inputs for number in inside)
    return "a part of the step's tokens, positions or context lengths" if is_part else None


class _WatchedStep:
    """A step as the module sees it while it is recorded: whatever may differ for as many rows is an obstacle."""

    def __init__(self, kv: KVCacheInputs[Any], recording: Recording) -> None:
        self._kv = kv
        self._recording = recording

    def __getattr__(self, name: str) -> Any:
        if name not in _OF_ANY_STEP:
            self._recording.refuse(f"the step's {name}")
        return getattr(self._kv, name)
