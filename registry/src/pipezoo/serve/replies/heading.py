"""What all responses to a request begin with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

__all__ = ["Heading"]


@dataclass(frozen=True, slots=True)
class Heading:
    """What all responses to a request begin with.

    Attributes:
        id: of the response.
        model: the name that the client gave, or the served model's.
        created: when, in seconds of the epoch.
    """

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
