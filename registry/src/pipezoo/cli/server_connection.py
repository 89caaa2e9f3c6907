"""Requests to a running server, by the standard library alone: JSON, and server-sent events while they come."""

from __future__ import annotations

import http.client
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, NoReturn
from urllib.parse import urlsplit

from pipezoo.cli.answer_text import visible
from pipezoo_core.errors import (
    InvalidRequestError,
    InvalidSettingError,
    ServerFailedError,
    ServerRefusedError,
    ServerUnreachableError,
    shown,
)

__all__ = ["API_KEY", "ServerConnection"]

API_KEY = "PIPEZOO_API_KEY"
"""The environment variable that has the key. An option would show it to everybody who lists processes."""

_CONNECT_SECONDS, _SILENT_SECONDS = 10, 600  # a long prompt takes its time, and a server that computes says nothing
_MAX_LINE, _MAX_BODY = 1 << 20, 1 << 24
_MAX_SAID = 600  # characters of what a server says of an error


class ServerConnection:
    """Asks one server. Each request has a connection of its own; proxies of the environment are not used.

    Args:
        url: such as `http://127.0.0.1:8000`; the `/v1` that other clients want at its end may be there.
        key: the API key, where the server wants one.

    Raises:
        InvalidSettingError: the address is none of a web server, or the key cannot be sent.
    """

    def __init__(self, url: str, *, key: str | None) -> None:
        self._host, self._port, self._path, self._is_secure = _parts(url)
        self._url = url
        if key and not (key.isascii() and key.isprintable()):
            raise InvalidSettingError(f"the key in {API_KEY} cannot be sent", allowed="printable characters of ASCII")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str) -> Any:
        """Returns the JSON at a path, such as `/v1/models`.

        Raises:
            ServerUnreachableError: nobody answers at the address.
            ServerRefusedError: the key is missing, or not one of the server's.
            InvalidRequestError: the server says that the request cannot be served.
            ServerFailedError: the server does not have the path, says that it has failed, or nothing that can be
                understood.
        """
        with self._response("GET", path, None) as response, self._whole(f"{self._url} went away"):
            return _parsed(response.read(_MAX_BODY))

    def events(self, path: str, body: Mapping[str, Any]) -> Generator[Any]:
        """Sends JSON to a path, and yields what comes back as server-sent events, until the server says `[DONE]`.

        Raises:
            What `get` does; ServerUnreachableError also where the server goes away before the end.
        """
        with self._response("POST", path, json.dumps(body).encode()) as response:
            for data in self._data(response):
                if data == b"[DONE]":
                    return
                event = _parsed(data)
                if isinstance(event, dict) and "error" in event:
                    raise ServerFailedError(f"the server has failed: {_said(event)}")
                yield event
        self._is_gone()

    def _data(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        while True:
            with self._whole(f"{self._url} went away in the middle of an answer"):
                line = response.readline(_MAX_LINE)
            if not line:
                return
            if line.startswith(b"data:"):  # others keep the connection alive
                yield line.removeprefix(b"data:").strip()

    @contextmanager
    def _response(self, method: str, path: str, body: bytes | None) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        with closing(kind(self._host, self._port, timeout=_CONNECT_SECONDS)) as connection:
            headers = {**self._headers, **({"Content-Type": "application/json"} if body else {})}
            with self._whole(f"no server answers at {self._url}"):
                connection.connect()
                connection.sock.settimeout(_SILENT_SECONDS)
                connection.request(method, self._path + path, body, headers)
                response = connection.getresponse()
            with response:
                if response.status != 200:
                    with self._whole(f"{self._url} went away"):
                        said = _said_of(response.status, response.read(_MAX_BODY))
                    if method == "GET" and response.status in (404, 405):
                        raise ServerFailedError(
                            f"{self._url} has no {path}, as servers of models do",
                            found=said,
                            cure="See whether the address is right.",
                        )
                    _refuse(response.status, said)
                yield response

    @contextmanager
    def _whole(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            raise ServerUnreachableError(what, found=f"{error}" or type(error).__name__, cure=_CURE) from error

    def _is_gone(self) -> NoReturn:
        raise ServerUnreachableError(f"{self._url} went away in the middle of an answer", cure=_CURE)


_CURE = "See whether it runs, and what its log says."


def _parts(url: str) -> tuple[str, int | None, str, bool]:
    """Returns host, port, the path in front of all others, and whether the connection is encrypted."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    is_sound = host and parts.scheme in ("http", "https") and url.isascii() and url.isprintable() and " " not in url
    if not is_sound or parts.query or parts.fragment or parts.username is not None:
        raise InvalidSettingError(
            "--url is no address of a server", found=shown(url), allowed="such as http://127.0.0.1:8000"
        )
    assert host is not None, "checked"
    return host, port, parts.path.rstrip("/").removesuffix("/v1"), parts.scheme == "https"


def _said_of(status: int, body: bytes) -> str:
    """Returns what a server says that refuses."""
    try:
        return _said(_parsed(body))
    except ServerFailedError:
        return f"HTTP status {status}"


def _refuse(status: int, said: str) -> NoReturn:
    """Raises what an HTTP status other than 200 means."""
    if status in (401, 403):
        raise ServerRefusedError(f"the server refuses: {said.rstrip('.')}", cure=f"Put its API key into {API_KEY}.")
    if status in (400, 404, 413, 415, 422):
        raise InvalidRequestError(said)
    raise ServerFailedError(f"the server does not answer: {said}", found=f"HTTP status {status}")


def _said(content: Any) -> str:
    """Returns what a server says of an error; it may say anything."""
    error = content.get("error") if isinstance(content, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    if not isinstance(message, str) or not message:
        raise ServerFailedError("the server has failed, and does not say why", found=shown(content))
    return visible(message if len(message) <= _MAX_SAID else f"{message[:_MAX_SAID]} …")


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ServerFailedError("what the server says cannot be understood", found=shown(data[:80])) from error
