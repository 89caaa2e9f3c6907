"""Signs of life, by which rank 0 tells a rank that is stopped from one that computes for long.

Each other rank has a thread that counts, whatever its step is doing. The thread of a process that is stopped, or whose
host is unreachable, does not count any more.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Protocol

from torch._C._distributed_c10d import Store

from pipezoo_core.distributed.shared_file import map_shared_file

__all__ = ["Counters", "Heartbeats", "MappedCounters", "StoredCounters"]

_INTERVAL = 1.0
_PER_TIMEOUT = 8  # beats, at least
_MOST_PER_LOOK = 1.0


class Counters(Protocol):
    """Where the ranks count: each its own number, which the others read."""

    def write(self, rank: int, count: int) -> None:
        """Sets the number of a rank."""
        ...

    def read(self, rank: int) -> int | None:
        """Returns the number of a rank; None where nothing can be known of it now."""
        ...


class MappedCounters:
    """Counters in a file that the ranks of one host map: eight bytes for each of them."""

    def __init__(self, path: Path) -> None:
        self._counts = memoryview(map_shared_file(path)).cast("q")

    def write(self, rank: int, count: int) -> None:
        """As `Counters.write`."""
        self._counts[rank] = count

    def read(self, rank: int) -> int:
        """As `Counters.read`."""
        return self._counts[rank]


class StoredCounters:
    """Counters in the store by which a launcher's processes meet."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def write(self, rank: int, count: int) -> None:
        """As `Counters.write`."""
        try:
            self._store.set(_key(rank), str(count))
        except RuntimeError:  # the launcher is gone, and its store with it: then nobody can read it either
            return

    def read(self, rank: int) -> int | None:
        """As `Counters.read`."""
        try:
            return int(self._store.get(_key(rank))) if self._store.check([_key(rank)]) else 0
        except RuntimeError:
            return None


class Heartbeats:
    """Counts for this rank; on rank 0 watches the others instead.

    Args:
        counters: that all ranks have.
        rank: of this process.
        size: how many ranks there are.
        timeout: seconds without a sign of life after which a rank is lost.
    """

    def __init__(self, counters: Counters, rank: int, size: int, timeout: float) -> None:
        self.timeout = timeout
        self._counters = counters
        self._watched = range(1, size) if rank == 0 else range(0)
        self._seen: dict[int, int] = {}
        self._silence = dict.fromkeys(self._watched, 0.0)
        self._looked = time.monotonic()
        self._ended = threading.Event()
        if rank > 0:
            threading.Thread(target=self._beat, args=(rank,), name="pipezoo-heartbeat", daemon=True).start()

    def silent_rank(self) -> tuple[int, float] | None:
        """Returns a rank that has shown no sign of life for longer than the timeout, and the seconds; None without one.

        To be called again and again while the ranks are waited for. Only time between such calls counts: when this
        process was stopped itself, or waited for nobody, the others are not to blame.
        """
        now = time.monotonic()
        elapsed, self._looked = min(now - self._looked, _MOST_PER_LOOK), now
        for rank in self._watched:
            count = self._counters.read(rank)
            if count is None:
                continue
            is_same = self._seen.get(rank) == count
            self._seen[rank] = count
            self._silence[rank] = self._silence[rank] + elapsed if is_same else 0.0
            if self._silence[rank] > self.timeout:
                return rank, self._silence[rank]
        return None

    def end(self) -> None:
        """Stops counting."""
        self._ended.set()

    def _beat(self, rank: int) -> None:
        count = 0
        while True:
            count += 1
            self._counters.write(rank, count)
            if self._ended.wait(min(_INTERVAL, self.timeout / _PER_TIMEOUT)):
                return


def _key(rank: int) -> str:
    return f"heartbeat of rank {rank}"
