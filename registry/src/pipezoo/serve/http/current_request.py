"""The request that the current task works on, for what is told of it far from the route."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["CurrentRequest", "current_request"]


@dataclass(frozen=True, slots=True)
class CurrentRequest:
    """What of an HTTP request goes into traces.

    Attributes:
        request_id: its name, in its response and in the log.
        path: that it asks for.
        trace_headers: `traceparent` and `tracestate`, those that it has.
    """

    request_id: str
    path: str
    trace_headers: dict[str, str]


current_request: ContextVar[CurrentRequest | None] = ContextVar("pipezoo_current_request", default=None)
"""None outside of a request."""
