"""How a check ends that does not pass."""

from __future__ import annotations

from pipezoo_core.errors import PipezooError

__all__ = ["ConformanceError", "NotCheckedError", "UnknownModelTypeError"]


class ConformanceError(PipezooError, AssertionError):
    """A plugin does not do what every plugin does: its message says where, and what is most likely wrong."""


class NotCheckedError(Exception):
    """A check does not apply, or checks what the plugin does not claim; the message is the reason."""


class UnknownModelTypeError(NotCheckedError, LookupError):
    """Nobody knows what a config of this type says: transformers has no class, and the author names none."""
