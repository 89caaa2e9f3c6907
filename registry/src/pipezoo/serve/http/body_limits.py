"""How large a request's body may be, how slow, and how many of them may arrive at the same time."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipezoo.serve.errors import BodyTooLargeError, TooManyBodiesError
from pipezoo.serve.http.arriving import ArrivingBodies, ArrivingBody
from pipezoo.serve.http.watched import failure_response

__all__ = ["BodyLimits"]

_SECONDS_OF_SILENCE = 60.0
_LEAST_RATE = 1 << 16  # bytes/s behind these seconds: else a byte now and then would keep a place for ever
_MAX_ARRIVING = 1024
_MAX_ARRIVING_SIZE = 16  # bodies of the greatest size


class BodyLimits:
    """Refuses bodies that are too large before they are read, and ends those that turn out to be, or do not go on.

    Args:
        app: what is behind.
        max_size: most bytes of a body.
        seconds: after which a body that stopped arriving is given up, and so is one that began as long ago and a second
            for each 64 KiB that have come.
        max_arriving: most bodies that arrive at the same time; those that are there have 16 times `max_size` together.
    """

    def __init__(
        self, app: ASGIApp, max_size: int, *, seconds: float = _SECONDS_OF_SILENCE, max_arriving: int = _MAX_ARRIVING
    ) -> None:
        self._app = app
        self._max_size = max_size
        self._seconds = seconds
        self._arriving = ArrivingBodies(max_arriving, _MAX_ARRIVING_SIZE * max_size)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        said = headers.get("content-length", "0")
        if said.isascii() and said.isdecimal() and len(said) < 20 and int(said) > self._max_size:
            await failure_response(self._too_large(said))(scope, receive, send)
        elif said == "0" and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
        else:
            await self._limited(scope, receive, send)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = self._arriving.one_more()
        except TooManyBodiesError as error:
            await failure_response(error)(scope, receive, send)
            return
        try:
            await self._app(scope, lambda: self._receive(receive, body), send)
        finally:
            body.complete()

    async def _receive(self, receive: Receive, body: ArrivingBody) -> Message:
        if body.is_complete:  # what comes now is that the client goes away
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), min(self._seconds, self._seconds_left(body)))
        except TimeoutError:
            raise HTTPException(408, "the body of the request stopped arriving, or is too slow") from None
        try:
            body.grow(len(message.get("body", b"")))
        except TooManyBodiesError as error:
            raise HTTPException(429) from error
        if body.size > self._max_size:
            raise HTTPException(413) from self._too_large(body.size)
        if not message.get("more_body", False):
            body.complete()
        return message

    def _seconds_left(self, body: ArrivingBody) -> float:
        return body.begin + self._seconds + body.size / _LEAST_RATE - time.monotonic()

    def _too_large(self, size: object) -> BodyTooLargeError:
        return BodyTooLargeError(
            "the body of the request is too large", found=f"{size} bytes", allowed=f"at most {self._max_size}"
        )
