"""A model on several devices, each with a process of its own that computes its part of every step.

Rank 0 is the process that calls `registry.load`; it has the pipeline, and starts the others. Under a launcher such as
torchrun, every process calls `registry.load`, and starts none. Either way all of them come here.
"""

from __future__ import annotations

import os
import pickle
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias, TypeVar

import torch

from pipezoo import registry
from pipezoo.checkpoint import Checkpoint
from pipezoo.devices import check_device, place_model
from pipezoo.load import LoadPlan, build_pipeline, open_model, plan_load
from pipezoo.resolution import Resolution
from pipezoo_core.config import PipelineConfig
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.distributed import (
    DistributedGroup,
    Workers,
    follow_parent,
    join_launched,
    join_local,
    launched_rank,
    ranks_here,
)
from pipezoo_core.errors import RankLostError
from pipezoo_core.memory import MemoryPlan
from pipezoo_core.pipeline import TextGenerationPipeline

__all__ = ["load_parallel", "work"]

T = TypeVar("T")
Decided: TypeAlias = tuple[PipelineConfig, MemoryPlan]


@dataclass(frozen=True, slots=True)
class _Call:
    """What a process that was started is to do."""

    path: str
    plugin: str
    devices: Sequence[str]
    dtype: str
    settings: dict[str, Any]


def load_parallel(
    find: Callable[[], tuple[Checkpoint, Resolution]], devices: Sequence[str], dtype: str, settings: dict[str, Any]
) -> TextGenerationPipeline:
    """Loads a model on several devices.

    Args:
        find: downloads what is missing, and returns the model's files and plugin.
        devices: one per process.
        dtype: as for `registry.load`.
        settings: as for `registry.load`.

    Raises:
        SystemExit: in a process of a rank other than 0, when rank 0 is done.
        RankLostError: another process is gone.
        What `registry.load` raises, in rank 0, wherever it went wrong.
    """
    rank = launched_rank()
    if rank is not None:
        group = join_launched(len(devices), check_device(devices[rank % len(devices)]))  # it counts them itself
        return _load(group, lambda decided: _plan_load(find(), devices, dtype, settings, decided))
    device, *_ = place_model(devices, 1)
    workers = Workers(len(devices) - 1, __name__, work.__name__)
    try:
        found = find()
        path, plugin = str(found[0].source.path), found[1].plugin.distribution
        workers.tell(_Call(path, plugin, devices, dtype, settings))
        group = workers.join(device)
    except BaseException:
        workers.stop()
        raise
    return _load(group, lambda decided: _plan_load(found, devices, dtype, settings, decided))


def work() -> NoReturn:
    """Is the whole life of a process that rank 0 has started."""
    rank, size, folder, call = follow_parent()
    group = join_local(rank, size, folder, torch.device(call.devices[rank]))

    def plan(decided: Decided | None) -> LoadPlan:
        found = registry.find(call.path, plugin=call.plugin)
        return _plan_load(found, call.devices, call.dtype, call.settings, decided)

    _load(group, plan)
    raise AssertionError("only rank 0 has a pipeline")


def _plan_load(
    found: tuple[Checkpoint, Resolution],
    devices: Sequence[str],
    dtype: str,
    settings: dict[str, Any],
    decided: Decided | None,
) -> LoadPlan:
    checkpoint, resolution = found
    return plan_load(
        checkpoint, resolution.architecture, devices=devices, dtype=dtype, settings=settings, decided=decided
    )


def _load(group: DistributedGroup, plan: Callable[[Decided | None], LoadPlan]) -> TextGenerationPipeline:
    _CORES.share(group)
    try:
        agreed = _agree(group, plan)
        built = _together(group, lambda: _build(agreed, group))
    except BaseException as error:
        group.fail("the model was not loaded", error)  # the others are not at the point where they wait for a goodbye
        _close(group)
        if group.rank and isinstance(error, Exception):
            raise SystemExit(0) from error  # rank 0 raises it
        raise
    if isinstance(built, TextGenerationPipeline):
        weakref.finalize(built.model, _close, group)
        return built
    try:
        built.serve()
    except RankLostError as error:
        raise SystemExit(1) from error
    finally:
        group.close()
    raise SystemExit(0)


def _agree(group: DistributedGroup, plan: Callable[[Decided | None], LoadPlan]) -> LoadPlan:
    """Decides on rank 0 what is left open; the others take it over."""
    mine = _together(group, lambda: plan(None) if group.rank == 0 else None)
    decided = group.exchange_objects(mine and (mine.pipeline_config.updated(huggingface_config=None), mine.memory))[0]
    return _together(group, lambda: mine or plan(decided))


def _build(plan: LoadPlan, group: DistributedGroup) -> TextGenerationPipeline | DecoderPipelineModel:
    if group.rank == 0:
        return build_pipeline(plan, group)
    model = open_model(plan, plan.devices, group)
    assert isinstance(model, DecoderPipelineModel)
    return model


def _together(group: DistributedGroup, run: Callable[[], T]) -> T:
    """Runs something on each rank. Where it fails on any, its error is raised on all of them."""
    error: BaseException | None = None
    try:
        result = run()
    except Exception as raised:  # the others wait for it, whatever it is
        error = raised
    errors = group.exchange_objects(_portable(error))
    if error is not None and all(other is None for other in errors[: group.rank]):
        raise error
    for rank, other in enumerate(errors):
        if other is not None:
            other.add_note(f"It happened in the process of rank {rank}.")
            raise other
    return result


def _portable(error: BaseException | None) -> BaseException | None:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error of a plugin may hold anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Cores:
    """Lets the processes that this host has for a model not use more threads together than there are cores."""

    def __init__(self) -> None:
        self._groups: set[DistributedGroup] = set()
        self._num_threads = 0

    def share(self, group: DistributedGroup) -> None:
        """Takes fewer threads for this process, until the last of its groups gives them back."""
        if not self._groups:
            self._num_threads = torch.get_num_threads()
        self._groups.add(group)
        share = max(1, _num_cores() // ranks_here(group.size))
        torch.set_num_threads(min(torch.get_num_threads(), share))

    def give_back(self, group: DistributedGroup) -> None:
        """Says that a group is closed. More than once does nothing."""
        if group in self._groups:
            self._groups.remove(group)
            if not self._groups:
                torch.set_num_threads(self._num_threads)


_CORES = _Cores()


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _close(group: DistributedGroup) -> None:
    group.close()
    _CORES.give_back(group)
