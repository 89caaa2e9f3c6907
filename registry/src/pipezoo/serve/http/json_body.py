"""JSON of the network, strictly: UTF-8, no NaN, no half surrogates, and no depth that a parser cannot bear.

A body has to be said to be JSON: a browser sends some of other types for any page, without asking the server before.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from pipezoo.serve.errors import UnsupportedBodyError
from pipezoo_core.errors import shown

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
        """Returns the handler, which sees such a request, and raises UnsupportedBodyError of a body that is no JSON."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            _check_is_json(request.headers)
            return await handler(_JSONRequest(request.scope, request.receive))

        return handle


def _check_is_json(headers: Headers) -> None:
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedBodyError(
            "the body is compressed, and is read only as it is",
            found=f"Content-Encoding: {shown(encoding)}",
            cure="Send it without `Content-Encoding`.",
        )
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return  # that it is missing is said later
    kind, _, subkind = headers.get("content-type", "").partition(";")[0].strip().lower().partition("/")
    if kind != "application" or not (subkind == "json" or subkind.endswith("+json")):
        raise UnsupportedBodyError(
            "the body is not said to be JSON",
            found=f"Content-Type: {shown(headers.get('content-type'))}",
            cure="Send the header `Content-Type: application/json`.",
        )
