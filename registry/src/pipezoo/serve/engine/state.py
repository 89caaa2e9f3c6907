"""How requests see the engine from outside its process."""

from __future__ import annotations

import enum

__all__ = ["EngineState"]


class EngineState(enum.StrEnum):
    """What the engine does."""

    LOADING = "loading"
    READY = "ready"
    DEAD = "dead"
