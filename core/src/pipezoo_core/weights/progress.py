"""How far the loading of weights is, for whoever wants to show it. Knows nothing of terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

__all__ = ["WeightsObserver", "observed_weights", "report_weights"]

WeightsObserver: TypeAlias = Callable[[int, int], None]
"""Called with how many numbers of a module are loaded and in their final form, and with how many there are."""

_observer: ContextVar[WeightsObserver | None] = ContextVar("observer of weights", default=None)


@contextmanager
def observed_weights(observer: WeightsObserver) -> Iterator[None]:
    """Tells an observer of all weights that are loaded inside, in this thread or task.

    It hears of each module from nothing to the whole, of one replica after the other, and of this process's part where
    several compute a replica together. What it raises ends the load.
    """
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def report_weights(num_done: int, num_all: int) -> None:
    """Tells the observer, where there is one."""
    if (observer := _observer.get()) is not None:
        observer(num_done, num_all)
