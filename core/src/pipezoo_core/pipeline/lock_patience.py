"""How long a step waits for Python's interpreter lock."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["short_patience"]

_SECONDS = 5e-4

_lock = threading.Lock()
_num_inside = 0
_before = 0.0


@contextmanager
def short_patience() -> Iterator[None]:
    """Lets a thread that computes have the interpreter's lock back after 0.5 ms, as long as the context lasts.

    Kernels let go of the lock, and so does what they are called between. Beside a thread that runs Python all the time,
    each time costs what `sys.getswitchinterval` says: 5 ms, as long as a step of a small model. That is a setting of
    the whole process, and others' threads share in it. It is what it was when no step runs; another one that somebody
    sets meanwhile stays.
    """
    global _num_inside, _before
    with _lock:
        _num_inside += 1
        if _num_inside == 1:
            _before = sys.getswitchinterval()
            if _before > _SECONDS:
                sys.setswitchinterval(_SECONDS)
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            is_ours = abs(sys.getswitchinterval() - _SECONDS) < 2e-6  # it is kept in whole microseconds
            if _num_inside == 0 and _before > _SECONDS and is_ours:
                sys.setswitchinterval(_before)
