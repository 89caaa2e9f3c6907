"""A name for each request, in its response and in the log."""

from __future__ import annotations

import logging
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipezoo.serve.http.current_request import CurrentRequest, current_request
from pipezoo_core.request import new_request_id

__all__ = ["RequestIDs"]

_LOGGER = logging.getLogger("pipezoo.serve")
_HEADER = "x-request-id"
_TRACED = ("traceparent", "tracestate")
_VALID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestIDs:
    """Gives each request the name that it brings, if that is short and plain, or a new one, and logs how it ended.

    `current_request` has it. Nothing of a request's body is logged.

    Args:
        app: what is behind.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(_HEADER, "")
        request_id = given if _VALID.fullmatch(given) else new_request_id()
        path = _plain(scope["path"])
        traced = {name: headers[name] for name in _TRACED if name in headers}
        current_request.set(CurrentRequest(request_id, path, traced))
        status, begin = 0, time.monotonic()

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[_HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        finally:
            seconds = time.monotonic() - begin
            fields = {
                "request_id": request_id,
                "method": scope["method"],
                "path": path,
                "status": status,
                "seconds": round(seconds, 6),
            }
            _LOGGER.info(
                "%s %s %s %d %.3f s", request_id, scope["method"], path, status, seconds, extra={"fields": fields}
            )


def _plain(path: str) -> str:
    """Returns a path as one short line, whatever a client has put into it."""
    return path[:200].encode("ascii", "backslashreplace").decode().translate(dict.fromkeys(range(32), "?"))
