"""Whether a forked child can compute, when its parent has computed before."""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import suppress
from pathlib import Path

import torch

from pipezoo_core.errors import ForkedProcessError

__all__ = ["check_inherited_threads"]

_FORKED = 0x40  # PF_FORKNOEXEC of Linux: the process has forked, and runs no program of its own since
_PATIENCE = 5.0  # seconds for what takes milliseconds
_ENOUGH = 1 << 20  # numbers that torch divides among its threads


def check_inherited_threads() -> None:
    """Checks that torch's threads can be used in this process.

    GNU's OpenMP remembers the threads that a parent has computed with. In a forked child they do not exist, and the
    next computation waits for them for ever. Nothing tells beforehand, so a child of this process tries it. That is
    only done in a forked process in which no such thread can run yet; all others are left alone.

    Raises:
        ForkedProcessError: torch would wait for ever.
    """
    if torch.get_num_threads() == 1 or not _is_forked() or _has_native_threads():
        return
    child = os.fork()
    if child == 0:
        try:
            torch.zeros(_ENOUGH, dtype=torch.float32, device="cpu").add_(1)
        finally:
            os._exit(0)
    watched = os.pidfd_open(child)
    try:
        end = select.poll()
        end.register(watched, select.POLLIN)
        can_compute = bool(end.poll(_PATIENCE * 1000))
    finally:
        os.close(watched)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):  # somebody else waits for all children
            os.waitpid(child, 0)
    if not can_compute:
        raise ForkedProcessError(
            "this forked process cannot compute: it waits for threads that only its parent has",
            found=f"{torch.get_num_threads()} threads, used by the parent before it forked",
            allowed="a parent that has not computed yet, or one thread",
            cure="Start the process with multiprocessing's 'spawn' method, or call torch.set_num_threads(1) first.",
        )


def _is_forked() -> bool:
    with suppress(OSError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return bool(int(fields[6]) & _FORKED)
    return False  # not Linux, where OpenMP is another one that starts its threads anew


def _has_native_threads() -> bool:
    return len(list(Path("/proc/self/task").iterdir())) > threading.active_count()
