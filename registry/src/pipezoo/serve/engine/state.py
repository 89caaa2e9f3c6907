"""The states of the engine, as the server's process knows them."""

from __future__ import annotations

import enum

__all__ = ["EngineState"]


class EngineState(enum.StrEnum):
    """What the engine does."""

    LOADING = "loading"
    READY = "ready"
    DEAD = "dead"
