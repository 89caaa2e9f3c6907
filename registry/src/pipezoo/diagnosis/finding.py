"""One thing that was looked at, and whether it is as it should be."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Finding", "Status"]


class Status(enum.StrEnum):
    """How a thing is: a note is worth a look, and only what is broken keeps models from being served."""

    fine = "fine"
    note = "note"
    broken = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        value: what was found, in words.
        status: how it is.
        cure: what the user can do about it, a sentence; None where there is nothing to do.
    """

    name: str
    value: str
    status: Status = Status.fine
    cure: str | None = None
