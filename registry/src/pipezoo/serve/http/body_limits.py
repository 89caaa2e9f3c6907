"""How large a request's body may be, and how slow."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipezoo.serve.errors import BodyTooLargeError
from pipezoo.serve.http.watched import failure_response

__all__ = ["BodyLimits"]

_SECONDS_OF_SILENCE = 60.0


class BodyLimits:
    """Refuses bodies that are too large before they are read, and ends those that turn out to be, or do not go on.

    Args:
        app: what is behind.
        max_size: most bytes.
        seconds: after which a body that stopped arriving is given up.
    """

    def __init__(self, app: ASGIApp, max_size: int, *, seconds: float = _SECONDS_OF_SILENCE) -> None:
        self._app = app
        self._max_size = max_size
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = Headers(scope=scope).get("content-length", "0")
        if said.isascii() and said.isdecimal() and len(said) < 20 and int(said) > self._max_size:
            await failure_response(self._too_large(said))(scope, receive, send)
            return
        size, is_complete = 0, False

        async def receive_limited() -> Message:
            nonlocal size, is_complete
            if is_complete:  # what comes now is that the client goes away
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._seconds)
            except TimeoutError:
                raise HTTPException(408, "the body of the request stopped arriving") from None
            size += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if size > self._max_size:
                raise HTTPException(413) from self._too_large(size)
            return message

        await self._app(scope, receive_limited, send)

    def _too_large(self, size: object) -> BodyTooLargeError:
        return BodyTooLargeError(
            "the body of the request is too large", found=f"{size} bytes", allowed=f"at most {self._max_size}"
        )
