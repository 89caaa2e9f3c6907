"""A model on several devices, each with a process of its own that computes its part of every step.

Rank 0 is the process that calls `registry.load`; it has the pipeline, and starts the others. It is rank 0 of every
replica; each other process belongs to one. Under a launcher such as torchrun, every process calls `registry.load`, and
starts none. Either way all of them come here.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NoReturn, TypeVar

import torch

from pipezoo.discovery.index import PluginIndex
from pipezoo.loading.build import build_pipeline, open_model
from pipezoo.loading.devices import check_device, of_each_replica, place_model
from pipezoo.loading.find import FoundModel, find
from pipezoo.loading.plan import LoadPlan, follow_plan, plan_load
from pipezoo.loading.settings import LoadSettings
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.distributed import (
    DistributedGroup,
    Workers,
    decode_error,
    encode_error,
    follow_parent,
    join_launched,
    join_local,
    launched_rank,
    ranks_here,
)
from pipezoo_core.errors import InvalidSettingError, RankLostError
from pipezoo_core.memory import MemoryPlan
from pipezoo_core.pipeline import TextGenerationPipeline

__all__ = ["load_parallel", "work"]

T = TypeVar("T")


def load_parallel(find_model: Callable[[], FoundModel], settings: LoadSettings) -> TextGenerationPipeline:
    """Loads a model on several devices.

    Args:
        find_model: downloads what is missing, and returns the model.
        settings: with several devices for each replica. This process has the first of each, the others have one of
            their own.

    Raises:
        SystemExit: in a process of a rank other than 0, when rank 0 is done.
        InvalidSettingError: there are several replicas, and a launcher has started the processes.
        RankLostError: another process is gone, or shows no sign of life.
        What `registry.load` raises, in rank 0, wherever it went wrong.
    """
    if (rank := launched_rank()) is not None:
        return _load_launched(rank, find_model, settings)
    names, num_replicas = settings.device_names, settings.data_parallel_degree
    places = of_each_replica(place_model(names, num_replicas), num_replicas)
    workers: list[Workers] = []
    try:
        workers.extend(Workers(len(part) - 1, __name__, work.__name__) for part in places)
        found = find_model()
        call = {
            "path": str(found.checkpoint.source.path),
            "plugin": found.resolution.plugin.distribution,
            "num_ranks_here": len(names),
            "timeout": settings.rank_timeout,
        }
        for started, part in zip(workers, of_each_replica(names, num_replicas), strict=True):
            started.tell({**call, "devices": list(part)})
        groups = [started.join(part[0], settings.rank_timeout) for started, part in zip(workers, places, strict=True)]
    except BaseException:
        for started in workers:
            started.stop()
        raise
    return _load(groups, lambda: found, settings, len(names))


def _load_launched(rank: int, find_model: Callable[[], FoundModel], settings: LoadSettings) -> TextGenerationPipeline:
    if settings.data_parallel_degree > 1:
        raise InvalidSettingError(
            "a launcher has started the processes, and those that it starts compute one replica",
            found=f"{settings.data_parallel_degree} replicas",
            cure="Start the script without a launcher: it starts what it needs itself.",
        )
    names = settings.device_names
    own = check_device(names[rank % len(names)])  # joining counts the processes
    group = join_launched(len(names), own, settings.rank_timeout)
    return _load([group], find_model, settings, ranks_here(group.size))


def work() -> NoReturn:
    """Is the whole life of a process that rank 0 has started."""
    rank, size, place, call = follow_parent()
    device = torch.device(call["devices"][rank])
    group = join_local(rank, size, place, device, call["timeout"])
    _load([group], lambda: find(PluginIndex(), call["path"], plugin=call["plugin"]), None, call["num_ranks_here"])
    raise AssertionError("only rank 0 has a pipeline")


def _load(
    groups: Sequence[DistributedGroup],
    find_model: Callable[[], FoundModel],
    settings: LoadSettings | None,
    num_ranks_here: int,
) -> TextGenerationPipeline:
    """Loads what this process has of the model, as rank 0 of a group per replica, or as another rank of one.

    What follows is the same on all ranks; only rank 0 has several groups, and goes through them in order.

    Args:
        groups: that this process belongs to.
        find_model: returns the model.
        settings: of the load; only rank 0 needs to know them.
        num_ranks_here: how many ranks share this host's cores, those of all replicas together.
    """
    for group in groups:
        _CORES.share(group, num_ranks_here)
    try:
        agreed = _agree(groups, find_model, settings)
        built = _together(groups, lambda: _build(agreed, groups))
    except BaseException as error:
        for group in groups:
            group.fail("the model was not loaded", error)  # the others do not wait for a goodbye yet
            _close(group)
        if groups[0].rank and isinstance(error, Exception):
            raise SystemExit(0) from error  # rank 0 raises it
        raise
    if isinstance(built, TextGenerationPipeline):
        for model, group in zip(built.models, groups, strict=True):
            weakref.finalize(model, _close, group)
        return built
    try:
        built.serve()
    except RankLostError as error:
        raise SystemExit(1) from error
    finally:
        groups[0].close()
    raise SystemExit(0)


def _agree(
    groups: Sequence[DistributedGroup], find_model: Callable[[], FoundModel], settings: LoadSettings | None
) -> LoadPlan:
    """Decides on rank 0 what the settings leave open; the others take it over."""

    def decide() -> LoadPlan | None:
        if groups[0].rank:
            return None
        assert settings is not None
        return plan_load(find_model(), settings)

    mine = _together(groups, decide)
    told = [group.exchange_objects(mine and _told(mine, replica))[0] for replica, group in enumerate(groups)]

    def follow() -> LoadPlan:
        return follow_plan(find_model(), LoadSettings(**told[0]["settings"]), MemoryPlan(**told[0]["memory"]))

    return _together(groups, lambda: mine or follow())


def _told(plan: LoadPlan, replica: int) -> dict[str, Any]:
    """Returns what rank 0 tells the others of a replica, as JSON can say it."""
    settings = plan.settings.of_replica(replica)
    return {"settings": settings.model_dump(mode="json", exclude_unset=True), "memory": asdict(plan.memory)}


def _build(plan: LoadPlan, groups: Sequence[DistributedGroup]) -> TextGenerationPipeline | DecoderPipelineModel:
    if groups[0].rank == 0:
        return build_pipeline(plan, groups)
    model = open_model(plan, plan.devices, groups[0])
    assert isinstance(model, DecoderPipelineModel)
    return model


def _together(groups: Sequence[DistributedGroup], run: Callable[[], T]) -> T:
    """Runs something on each rank. Where it fails on any, its error is raised on all of them."""
    error: Exception | None = None
    try:
        result = run()
    except Exception as raised:  # the others wait for it, whatever it is
        error = raised
    own = error and encode_error(error)
    of_replicas = [group.exchange_objects(own) for group in groups]
    if error is not None and all(other is None for other in of_replicas[0][: groups[0].rank]):
        raise error
    for replica, errors in enumerate(of_replicas):
        for rank, data in enumerate(errors):
            if data is not None:
                where = f"rank {rank}" if len(groups) == 1 else f"rank {rank} of replica {replica}"
                other = decode_error(data)
                other.add_note(f"It happened in the process of {where}.")
                raise other
    return result


class _Cores:
    """Lets the ranks that this host has of a model not use more threads together than there are cores."""

    def __init__(self) -> None:
        self._groups: set[DistributedGroup] = set()
        self._num_threads = 0

    def share(self, group: DistributedGroup, num_ranks: int) -> None:
        """Takes fewer threads for each of so many ranks, until the last of this process's groups gives them back."""
        if not self._groups:
            self._num_threads = torch.get_num_threads()
        self._groups.add(group)
        share = max(1, _num_cores() // num_ranks)
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
