"""The requests of one caller, and what they produced that nobody has fetched yet."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipezoo_core.context import TextContext
from pipezoo_core.request import TextGenerationOutput

__all__ = ["Call", "PendingRequest"]


@dataclass(slots=True)
class PendingRequest:
    """What a request produced and nobody has fetched yet."""

    context: TextContext
    outputs: deque[TextGenerationOutput] = field(default_factory=deque)
    is_done: bool = False


class Call:
    """The requests that one caller waits for. Those that are not done when it is gone, or closed, are released.

    Args:
        requests: belong to this call alone.
        forget: releases requests, and waits for nobody.
    """

    def __init__(self, requests: Sequence[PendingRequest], forget: Callable[[Sequence[PendingRequest]], None]) -> None:
        self._requests = requests
        self.close = weakref.finalize(self, forget, requests)
        self.close.atexit = False

    @property
    def is_over(self) -> bool:
        """Whether all requests are done and all that they produced was taken."""
        return not any(request.outputs or not request.is_done for request in self._requests)

    @property
    def has_outputs(self) -> bool:
        """Whether there is something to take."""
        return any(request.outputs for request in self._requests)

    def take(self) -> list[TextGenerationOutput]:
        """Returns what the requests produced since the last time. Waits for nobody."""
        return [request.outputs.popleft() for request in self._requests for _ in range(len(request.outputs))]
