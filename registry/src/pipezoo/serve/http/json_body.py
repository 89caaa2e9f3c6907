"""JSON of the network, strictly: UTF-8, no NaN, no half surrogates, and no depth that a parser cannot bear."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

__all__ = ["JSONRoute"]


class _JSONRequest(Request):
    async def json(self) -> Any:
        try:
            return msgspec.json.decode(await self.body())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise HTTPException(400, f"the body is not valid JSON ({error})") from error


class JSONRoute(APIRoute):
    """A route whose body is read by msgspec."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Returns the handler, which sees such a request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JSONRequest(request.scope, request.receive))

        return handle
