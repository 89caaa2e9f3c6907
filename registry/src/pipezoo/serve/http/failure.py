"""What went wrong, as clients of this kind of server are told: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from typing_extensions import TypedDict

from pipezoo.serve.errors import (
    AuthenticationError,
    BodyTooLargeError,
    EngineLostError,
    EngineUnavailableError,
    FieldError,
    QueueFullError,
    ServerClosingError,
    TooManyBodiesError,
    UnknownHostError,
    UnknownModelError,
    UnsupportedBodyError,
)
from pipezoo.serve.fields.body import UNKNOWN_FIELD
from pipezoo_core.errors import (
    AdapterInUseError,
    AdapterNotFoundError,
    CheckpointError,
    ClosedPipelineError,
    DownloadError,
    HubUnreachableError,
    InsufficientPagesError,
    InvalidRequestError,
    InvalidSettingError,
    MissingDependencyError,
    ModelNotFoundError,
    PipezooError,
    PromptTooLongError,
    UnsupportedTokenizerError,
    shown,
)

__all__ = ["Failure", "FailureBody"]

_LOGGER = logging.getLogger("pipezoo")
_INVALID, _SERVER, _BUSY = "invalid_request_error", "server_error", "server_busy_error"
_RETRY = {"Retry-After": "1"}

_KINDS: Mapping[type[Exception], tuple[int, str, str | None]] = {
    AuthenticationError: (401, "authentication_error", "invalid_api_key"),
    UnknownHostError: (421, _INVALID, "unknown_host"),
    BodyTooLargeError: (413, _INVALID, "body_too_large"),
    UnsupportedBodyError: (415, _INVALID, "unsupported_body"),
    UnknownModelError: (404, _INVALID, "model_not_found"),
    AdapterNotFoundError: (404, _INVALID, "model_not_found"),
    AdapterInUseError: (409, _INVALID, "adapter_in_use"),
    TooManyBodiesError: (429, _BUSY, "too_many_bodies"),
    QueueFullError: (429, _BUSY, "queue_full"),
    EngineUnavailableError: (503, _BUSY, "engine_unavailable"),
    EngineLostError: (503, _SERVER, "engine_lost"),
    ServerClosingError: (503, _BUSY, "server_closing"),
    ClosedPipelineError: (503, _BUSY, "server_closing"),
    PromptTooLongError: (400, _INVALID, "context_length_exceeded"),
    InsufficientPagesError: (400, _INVALID, "context_length_exceeded"),
    FieldError: (400, _INVALID, None),
    InvalidRequestError: (400, _INVALID, None),
    InvalidSettingError: (400, _INVALID, None),
    MissingDependencyError: (400, _INVALID, "not_supported"),
    UnsupportedTokenizerError: (400, _INVALID, "not_supported"),
    ModelNotFoundError: (404, _INVALID, "adapter_not_found"),
    HubUnreachableError: (502, _SERVER, None),
    DownloadError: (502, _SERVER, None),
    CheckpointError: (400, _INVALID, None),
}
"""A kind of error -> status, type and code; of several kinds the first counts."""

_OF_STATUS = {404: ("there is no such address", None), 405: ("the address does not take this method", None)}


class FailureFields(TypedDict):
    """What went wrong: for people, for programs, which field is to blame, and which error of the type it is."""

    message: str
    type: str
    param: str | None
    code: str | None


class FailureBody(TypedDict):
    """The body of a response that tells of an error, and of an event in a stream."""

    error: FailureFields


@dataclass(frozen=True, slots=True)
class Failure:
    """What a client is told of an error.

    Attributes:
        status: of HTTP.
        message: for people.
        type: for programs.
        param: the field that is to blame, where it is one.
        code: which error of the type it is, where that matters.
        headers: for the response.
    """

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Returns what a client is told of an error. What is no client's business is logged in its place."""
        if isinstance(error, RequestValidationError):
            return _of_validation(error)
        if isinstance(error, HTTPException):
            if isinstance(error.__cause__, PipezooError):  # which could not pass through the framework by itself
                return cls.of(error.__cause__)
            message, code = _OF_STATUS.get(error.status_code, (str(error.detail), None))
            return cls(error.status_code, message, _INVALID, code=code, headers=dict(error.headers or {}))
        for kind, (status, type_, code) in _KINDS.items():
            if isinstance(error, kind):
                param = error.param if isinstance(error, FieldError) else None
                headers = _RETRY if status in (429, 503) else {}
                if status == 401:
                    headers = {"WWW-Authenticate": "Bearer"}
                return cls(status, str(error), type_, param, code, headers)
        if isinstance(error, PipezooError):  # of the model or the machine: the request may be sound
            return cls(500, str(error), _SERVER)
        _LOGGER.error("a request failed unforeseen", exc_info=error)
        return cls(500, "the server failed; its log says why", _SERVER)

    @property
    def body(self) -> FailureBody:
        """The body of the response, and of an event in a stream."""
        param = None if self.param is None else _encodable(self.param)
        return {"error": {"message": _encodable(self.message), "type": self.type, "param": param, "code": self.code}}


def _of_validation(error: RequestValidationError) -> Failure:
    """Returns what is said of the deepest place that is not valid, and of a list's items that of the last such one.

    Of several types that a field may have, that is the one that was meant, or if none was, all of them are told.
    """
    found = [(_place(error.body, each), each) for each in error.errors()]
    place, first = max(found, key=lambda item: _weight(*item))
    param = _name(place) or None
    if first["type"] == UNKNOWN_FIELD:
        return Failure(400, first["msg"], _INVALID, _name([*place, first["ctx"]["name"]]), "unknown_field")
    if first["type"] == "missing":
        name = _name([*place, *first["loc"][1:][-1:]]) or None
        return Failure(400, f"field {name!r} is missing" if name else "the body is missing", _INVALID, name)
    what = f"field {param!r} is not valid" if param else "the body is not valid"
    if first["type"] == "union_tag_invalid":
        what = f"the type of {param!r} is not known"
    allowed = " or ".join(dict.fromkeys(_allowed(each) for other, each in found if other == place))
    return Failure(400, f"{what} (found: {shown(first.get('input'))}; allowed: {allowed})", _INVALID, param)


def _weight(place: Sequence[str | int], error: Mapping[str, Any]) -> tuple[int, int, bool, bool]:
    """Returns how much an error tells, to be compared with others.

    An object that lacks a field is nearly of its type, and a list whose second item is wrong is so more than one of
    another type, whose first item is.
    """
    index = place[-1] if place and isinstance(place[-1], int) else -1
    is_incomplete = error["type"] == "missing" and isinstance(error["input"], Mapping)
    return len(place), index, error["type"] == UNKNOWN_FIELD, is_incomplete


def _allowed(error: Mapping[str, Any]) -> str:
    """Returns what an error says would be valid."""
    if error["type"] in ("model_type", "model_attributes_type", "union_tag_not_found"):
        return "an object"
    if error["type"] == "union_tag_invalid":
        return str(error["ctx"]["expected_tags"])
    return str(error["msg"]).removeprefix("Input should be ")


def _place(body: Any, error: Mapping[str, Any]) -> list[str | int]:
    """Returns the names and numbers that lead to what is not valid, without those that name a type that was tried.

    Where a field is missing, that is the object that lacks it: a null is missing, too.
    """
    place: list[str | int] = []
    for part in error["loc"][1:-1] if error["type"] == "missing" else error["loc"][1:]:
        try:
            body = body[part]
        except (KeyError, IndexError, TypeError):
            continue
        place.append(part)
    return place


def _name(place: Sequence[str | int]) -> str:
    return ".".join(map(str, place))


def _encodable(text: str) -> str:
    """Returns a text that UTF-8 can encode."""
    return text.encode("utf-8", "backslashreplace").decode()
