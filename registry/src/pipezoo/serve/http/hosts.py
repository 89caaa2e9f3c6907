"""By which names a server that only its own machine reaches may be called."""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pipezoo.serve.errors import UnknownHostError
from pipezoo.serve.http.watched import failure_response
from pipezoo_core.errors import shown

__all__ = ["LocalHosts", "is_loopback"]


class LocalHosts:
    """Lets requests through whose `Host` is a name of the machine itself.

    The owner of a web page can make its name one of 127.0.0.1 (DNS rebinding). To the browser the server is of the
    page's own origin then, and the page could ask and read; but the browser sends the page's name.

    Args:
        app: what is behind.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        host = Headers(scope=scope).get("host") if scope["type"] == "http" else None
        if host is None or is_loopback(_without_port(host)):  # every browser sends one
            await self._app(scope, receive, send)
            return
        error = UnknownHostError(
            "the server is not known by this name",
            found=shown(host),
            allowed="127.0.0.1, localhost, [::1]",
            cure="Let a proxy send one of these as `Host`, or start the server with --api-key-file.",
        )
        await failure_response(error)(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Whether an address or a name is one that only the machine itself reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _without_port(host: str) -> str:
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
