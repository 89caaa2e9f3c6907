"""Whether the other ranks of a model are there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress

import psutil

from pipezoo_core.distributed.heartbeats import Heartbeats
from pipezoo_core.distributed.meeting import first_line
from pipezoo_core.errors import RankLostError

__all__ = ["Liveness", "pid_namespace", "rank_lost"]


class Liveness:
    """Watches the processes of this host that it is told of, and on rank 0 the heartbeats of all ranks.

    Args:
        heartbeats: of all ranks.
    """

    def __init__(self, heartbeats: Heartbeats) -> None:
        self._heartbeats = heartbeats
        self._processes: dict[int, psutil.Process] = {}

    def watch(self, process_ids: Mapping[int, int]) -> None:
        """Watches processes of this host from now on, rank -> its process.

        Raises:
            RankLostError: one is gone already.
        """
        try:
            self._processes = {rank: psutil.Process(process_id) for rank, process_id in process_ids.items()}
        except psutil.NoSuchProcess as error:
            raise rank_lost("a rank is gone", error) from error

    def find_loss(self) -> RankLostError | None:
        """Returns which rank is gone, or has shown no sign of life for too long; None where all are there."""
        for rank, process in self._processes.items():
            with suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                    continue
            return rank_lost(f"the process of rank {rank} is gone")
        silent = self._heartbeats.silent_rank()
        return None if silent is None else _silent(*silent)


def rank_lost(what: str, cause: BaseException | None = None) -> RankLostError:
    """Returns the error of a group that cannot go on."""
    found = None if cause is None else first_line(cause)
    return RankLostError(what, found=found, cure="See what its process has printed, and load the model again.")


def _silent(rank: int, seconds: float) -> RankLostError:
    return RankLostError(
        f"the process of rank {rank} shows no sign of life",
        found=f"none for {seconds:.0f} seconds",
        cure="See whether it is stopped, or its host cannot be reached, and load the model again. "
        "A greater rank_timeout waits longer.",
    )


def pid_namespace() -> str:
    """Returns what processes have in common that know each other by the same ids; nothing where there is no such."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""
