"""Who may ask: one gate in front of all routes but those that a probe asks, and the files of the chat page.

A probe of Kubernetes has no secrets, and `/health` and `/ready` tell it the same word. The page asks for the key
itself.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pipezoo.serve.errors import AuthenticationError
from pipezoo.serve.http.watched import failure_response
from pipezoo.serve.page import PAGE_PATHS
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.local_file import readable

__all__ = ["APIKeys", "read_api_keys"]

_OPEN = PAGE_PATHS | {"/health", "/ready"}
_MIN_LENGTH, _MAX_LENGTH, _MAX_KEYS = 8, 1024, 10_000


class APIKeys:
    """Lets requests through that have one of the keys, as `Authorization: Bearer KEY`.

    Keys are compared by digests, all of them each time, so that the time it takes says nothing of a key.

    Args:
        app: what is behind the gate.
        keys: not empty.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http" or scope["path"] in _OPEN or self._is_known(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        error = AuthenticationError(
            "the request has no API key that is known here", cure="Send it as `Authorization: Bearer KEY`."
        )
        await failure_response(error)(scope, receive, send)

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = _digest(key.strip())
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(found)


def read_api_keys(path: str) -> tuple[str, ...]:
    """Returns the keys of a file, one a line; empty lines and those that begin with # are none.

    Raises:
        UnreadableFileError: it cannot be read.
        InvalidSettingError: it has no keys, or one that is too short, too long, or no ASCII; none is shown.
    """
    with readable(Path(path)):
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    stripped = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    keys = [(number, line) for number, line in stripped if line and not line.startswith("#")]
    if not 1 <= len(keys) <= _MAX_KEYS:
        raise InvalidSettingError(
            "the file of API keys has none, or too many", found=f"{len(keys)} in {path}", allowed=f"1 to {_MAX_KEYS}"
        )
    for number, key in keys:
        if not (_MIN_LENGTH <= len(key) <= _MAX_LENGTH and key.isascii() and key.isprintable() and " " not in key):
            raise InvalidSettingError(
                "an API key is not valid",
                found=f"line {number} of {path}, {len(key)} characters",
                allowed=f"{_MIN_LENGTH} to {_MAX_LENGTH} characters of ASCII, none of them a space",
                cure="Make one with: openssl rand -hex 32",
            )
    return tuple(key for _, key in keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
