"""What a server refuses, beside what a pipeline does."""

from __future__ import annotations

from pipezoo_core.errors import PipezooError

__all__ = [
    "AuthenticationError",
    "BodyTooLargeError",
    "EngineLostError",
    "EngineUnavailableError",
    "FieldError",
    "QueueFullError",
    "ServerClosingError",
    "TooManyBodiesError",
    "UnknownHostError",
    "UnknownModelError",
    "UnsupportedBodyError",
]


class FieldError(PipezooError, ValueError):
    """A field of a request is unknown, of another type, or out of range.

    Args:
        param: the field's name, with those of the fields that it is in.
        what: as of `PipezooError`, like the others.
    """

    def __init__(
        self, param: str | None, what: str, *, found: object = None, allowed: object = None, cure: str | None = None
    ) -> None:
        super().__init__(what, found=found, allowed=allowed, cure=cure)
        self.param = param


class AuthenticationError(PipezooError, PermissionError):
    """A request has no API key, or one that is not known."""


class BodyTooLargeError(PipezooError, ValueError):
    """A request's body is larger than the server reads."""


class UnsupportedBodyError(PipezooError, ValueError):
    """A request's body is compressed, or not said to be JSON."""


class UnknownHostError(PipezooError, PermissionError):
    """A request calls the server by a name that is not its own."""


class UnknownModelError(PipezooError, LookupError):
    """A request names a model that is not served here."""


class TooManyBodiesError(PipezooError, RuntimeError):
    """More bodies of requests are arriving than the server lets arrive at the same time."""


class QueueFullError(PipezooError, RuntimeError):
    """More requests wait than the server lets wait."""


class EngineUnavailableError(PipezooError, RuntimeError):
    """The engine does not take requests: the model is being loaded, or will not be any more."""


class EngineLostError(PipezooError, RuntimeError):
    """The engine's process ended while it worked on the request."""


class ServerClosingError(PipezooError, RuntimeError):
    """The server is about to end."""
