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
    each time costs what `sys.getswitchinterval` says: 5 ms, as long as a step of a small model. That is a setting of the
    whole process, and others' threads share in it. It is what it was when no step runs; another one that somebody sets
    meanwhile stays.
    """
    global _num_inside, _before
    with _lock:
        _num_inside += 1
        if _num_inside == 1:
            _before = sys.getswitchinterval()
            sys.setswitchinterval(min(_before, _SECONDS))
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            if _num_inside == 0 and abs(sys.getswitchinterval() - min(_before, _SECONDS)) < 1e-6:
                sys.setswitchinterval(_before)
