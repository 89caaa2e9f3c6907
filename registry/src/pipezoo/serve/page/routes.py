"""Routes of the chat page. Its files are in memory, and their names are the only ones that are answered."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response

__all__ = ["PAGE_PATHS", "page_router"]

_FOLDER = Path(__file__).parent / "static"
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
_HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for each time, and sent only where the ETag is another
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    headers: dict[str, str]


def _path_of(name: str) -> str:
    return "/" if name == "index.html" else f"/page/{name}"


def _read(path: Path) -> _File:
    content = path.read_bytes()
    headers = {
        **_HEADERS,
        "Content-Type": f"{_TYPES[path.suffix]}; charset=utf-8",
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    }
    return _File(content, headers)


PAGE_PATHS = frozenset(_path_of(path.name) for path in _FOLDER.iterdir())
"""The paths of the page. They are answered without an API key, because the page is what asks for it."""


def page_router() -> APIRouter:
    """Returns the routes of the page. They are no part of the API, and its schema lacks them."""
    router = APIRouter(include_in_schema=False)
    for path in sorted(_FOLDER.iterdir()):
        router.add_api_route(_path_of(path.name), _endpoint(_read(path)), methods=["GET"])
    return router


def _endpoint(file: _File) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if file.headers["ETag"] in {tag.strip().removeprefix("W/") for tag in known.split(",")}:
            return Response(status_code=304, headers=file.headers)
        return Response(file.content, headers=file.headers)

    return send
