"""How the processes of a model begin and end.

Rank 0 is the user's own process. It starts the others itself, or a launcher such as torchrun has started all of them.
What it starts hangs on a pipe: when rank 0 is gone, however it went, the pipe's end tells the others, and they end.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import FileStore, PrefixStore
from torch.distributed.rendezvous import rendezvous

from pipezoo_core.distributed.collectives import DistributedGroup
from pipezoo_core.distributed.heartbeats import MappedCounters, StoredCounters
from pipezoo_core.distributed.meeting import TO_MEET
from pipezoo_core.distributed.shared_file import SharedFile
from pipezoo_core.errors import InvalidSettingError, RankLostError

__all__ = ["MeetingPlace", "Workers", "follow_parent", "join_launched", "join_local", "launched_rank", "ranks_here"]

_BEGIN = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import {name} as main; main()"
_HERE = "rank {} is here"
_LOADS = "pipezoo loads"
_ELSEWHERE = "192.0.2.1"  # an address of no host (RFC 5737)
_COUNTER_BYTES = 8
_PAUSE = 0.02
_GRACE = 1.0  # seconds for a process to end by itself, as it was told
_PATIENCE = 5.0  # after that many it is made to


@dataclass(frozen=True, slots=True)
class MeetingPlace:
    """Files by which the ranks of one host find each other.

    Attributes:
        store: for a `FileStore`.
        counters: for `MappedCounters`.
    """

    store: str
    counters: str


class Workers:
    """The processes that rank 0 has started. They import what they need at once, and then wait to be told what to do.

    Args:
        num_workers: one fewer than there are ranks.
        module: where they begin.
        name: of the function there, which calls `follow_parent` first.
    """

    def __init__(self, num_workers: int, module: str, name: str) -> None:
        self._store = SharedFile()
        self._counters = SharedFile(_COUNTER_BYTES * (num_workers + 1))
        self._place = MeetingPlace(str(self._store.path), str(self._counters.path))
        command = [sys.executable, "-c", _BEGIN.format(module=module, name=name), json.dumps(sys.path)]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) for _ in range(num_workers)
        ]

    def tell(self, call: dict[str, Any]) -> None:
        """Tells them where to meet, and what to do, which JSON can say: what `follow_parent` returns there."""
        place, size = asdict(self._place), len(self._processes) + 1
        for rank, process in enumerate(self._processes, 1):
            assert process.stdin is not None
            told = {"parent": os.getpid(), "rank": rank, "size": size, "place": place, "call": call}
            data = json.dumps(told).encode()
            try:
                process.stdin.write(len(data).to_bytes(8, "little") + data)
                process.stdin.flush()
            except OSError as error:
                raise _gone(rank) from error

    def join(self, device: torch.device, timeout: float) -> DistributedGroup:
        """Meets them, as rank 0. The group ends them when it is closed.

        Args:
            device: as for `DistributedGroup`.
            timeout: as for `DistributedGroup`.

        Raises:
            RankLostError: one of them is gone, or does not come.
        """
        size = len(self._processes) + 1
        store = FileStore(self._place.store, size)
        last = time.monotonic() + TO_MEET.total_seconds()
        for rank, process in enumerate(self._processes, 1):
            while not store.check([_HERE.format(rank)]):
                if process.poll() is not None:
                    raise _gone(rank)
                if time.monotonic() > last:
                    raise _late(rank)
                time.sleep(_PAUSE)
        return join_local(0, size, self._place, device, timeout, stop=self.stop)

    def stop(self) -> None:
        """Ends them. More than once does nothing.

        The store's file stays open while this process lives: a `FileStore`, here or there, opens its path once more
        when it ends, and must find no other file there. The counters are closed when nobody can open them any more.
        """
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._counters.close()


def follow_parent() -> tuple[int, int, MeetingPlace, dict[str, Any]]:
    """Waits to be told what to do, and from then on ends this process when the one that has started it is gone.

    A forked child of that one may keep the pipe open, so the process itself is watched, too, where the system can.

    Returns:
        Rank, number of ranks, where they meet, and the call. The process ends here where nothing is told.
    """
    pipe = sys.stdin.buffer
    size = int.from_bytes(pipe.read(8), "little")
    data = pipe.read(size)
    if not size or len(data) < size:
        raise SystemExit(0)

    told = json.loads(data)

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):
            select.select([pipe, *_end_of(told["parent"])], [], [])  # nothing is ever written: the pipe ends
        time.sleep(_GRACE)  # rank 0 may have said goodbye in due form
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    return told["rank"], told["size"], MeetingPlace(**told["place"]), told["call"]


def _end_of(process: int) -> list[int]:
    """Returns what can be waited for until a process ends; nothing where the system has no such thing."""
    try:
        return [os.pidfd_open(process)]
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        return []


def join_local(
    rank: int,
    size: int,
    place: MeetingPlace,
    device: torch.device,
    timeout: float,
    *,
    stop: Callable[[], None] | None = None,
) -> DistributedGroup:
    """Meets the others of this host. The arguments are those of `DistributedGroup`, and the place."""
    store = FileStore(place.store, size)
    store.set(_HERE.format(rank), "")
    counters = MappedCounters(Path(place.counters))
    return DistributedGroup(rank, size, store, counters, device, timeout=timeout, network=_loopback(), stop=stop)


def launched_rank() -> int | None:
    """Returns this process's rank where a launcher such as torchrun has started it, else None.

    Raises:
        InvalidSettingError: what the launcher says in the environment is no number, or no rank.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return None
    rank, world_size, _ = map(_number, ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if rank >= world_size:
        raise InvalidSettingError(
            "the environment variable RANK is no rank of a launched process",
            found=rank,
            allowed=f"0 to {world_size - 1}, as WORLD_SIZE is {world_size}",
        )
    return rank


def _number(name: str) -> int:
    value = os.environ[name]
    if not (value.isascii() and value.isdecimal()):
        raise InvalidSettingError(
            f"the environment variable {name} is not what a launcher such as torchrun sets",
            found=value,
            allowed="a whole number",
            cure=f"Unset {name}, or start the script with a launcher.",
        )
    return int(value)


def ranks_here(size: int) -> int:
    """Returns how many of a model's ranks are processes of this host."""
    if launched_rank() is None or "LOCAL_WORLD_SIZE" not in os.environ:
        return size
    return min(size, max(1, _number("LOCAL_WORLD_SIZE")))


def join_launched(size: int, device: torch.device, timeout: float) -> DistributedGroup:
    """Meets the others, as a process that a launcher such as torchrun has started.

    Raises:
        InvalidSettingError: there are not as many processes as devices, or the processes serve a model already.
    """
    store, rank, world_size = next(rendezvous("env://"))
    if world_size != size:
        raise InvalidSettingError(
            "the launcher has started another number of processes than there are devices",
            found=f"{world_size} processes",
            allowed=f"one for each of the {size} devices",
        )
    if store.add(f"{_LOADS}/{rank}", 1) > 1:
        raise InvalidSettingError(
            "the processes that the launcher has started serve a model already",
            cure="Load one model per launch, or start the script without a launcher: it starts what it needs itself.",
        )
    own = PrefixStore("pipezoo", store)
    return DistributedGroup(rank, size, own, StoredCounters(own), device, timeout=timeout, network=_way_to_rank_0(size))


def _loopback() -> dict[str, str] | None:
    found = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    return {"interface": found[0]} if found else None


def _way_to_rank_0(size: int) -> dict[str, str] | None:
    """Returns the interface that GLOO_SOCKET_IFNAME names, else the address that this host has towards rank 0's.

    A host's name often leads to an address of its own that no other host reaches, and so does MASTER_ADDR where it is
    rank 0's own name. None where nothing better is known than the name.
    """
    if name := os.environ.get("GLOO_SOCKET_IFNAME"):
        names = [other for _, other in socket.if_nameindex()]
        if name not in names:
            raise InvalidSettingError(
                "the environment variable GLOO_SOCKET_IFNAME names no network interface of this host",
                found=name,
                allowed=names,
            )
        return {"interface": name}
    is_alone = "LOCAL_WORLD_SIZE" in os.environ and ranks_here(size) == size
    for host in (os.environ["MASTER_ADDR"], _ELSEWHERE):
        own = _address_towards(host)
        if own is not None and (is_alone or not ipaddress.ip_address(own).is_loopback):
            return {"hostname": own}
    return None


def _address_towards(host: str) -> str | None:
    with contextlib.suppress(OSError):
        family, kind, _, _, address = socket.getaddrinfo(host, 9, socket.AF_INET, socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # nothing is sent
            own: str = probe.getsockname()[0]
            return own
    return None


def _gone(rank: int) -> RankLostError:
    return RankLostError(
        f"the process of rank {rank} is gone", cure="See what it has printed, and load the model again."
    )


def _late(rank: int) -> RankLostError:
    return RankLostError(
        f"the process of rank {rank} does not come",
        allowed=f"within {TO_MEET.total_seconds():.0f} seconds",
        cure="See what it has printed, and whether it is stopped, and load the model again.",
    )
