"""From a model's name to a server that runs, with a terminal in front of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipezoo.discovery.index import PluginIndex
from pipezoo.files.model_files import read_files
from pipezoo.loading.find import find
from pipezoo.loading.settings import LoadSettings
from pipezoo.loading.tokenizer import build_tokenizer
from pipezoo.serve.engine.messages import Load
from pipezoo.serve.server import Server
from pipezoo.serve.settings import ServeSettings
from pipezoo_core.errors import InvalidSettingError

if TYPE_CHECKING:
    from pipezoo_core.tokenizer import TextTokenizer

__all__ = ["new_server", "serve"]


def serve(model: str, load_settings: dict[str, Any], settings: ServeSettings, *, say: Callable[[str], None]) -> None:
    """Loads a model and serves it, until SIGTERM or SIGINT.

    Args:
        model: as for `registry.load`.
        load_settings: likewise.
        settings: how to serve.
        say: shows a line to whoever has started the server.

    Raises:
        InvalidSettingError: the address cannot be had.
        EngineLostError: the engine died, and is not to be started again.
        What `registry.load` does.
    """
    with bound(settings) as listener:
        asyncio.run(_run(model, load_settings, settings, listener, say))


def bound(settings: ServeSettings) -> socket.socket:
    """Returns a socket at the address of the settings.

    Raises:
        InvalidSettingError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise InvalidSettingError(
            "the server cannot listen at this address",
            found=f"{settings.host}, port {settings.port}: {error.strerror}",
            cure="Take another --host or --port, or end the program that has it.",
        ) from error
    return listener


async def _run(
    model: str,
    load_settings: dict[str, Any],
    settings: ServeSettings,
    listener: socket.socket,
    say: Callable[[str], None],
) -> None:
    await new_server(model, load_settings, settings, on_ready=lambda address: say(f"serving at {address}")).run(
        listener
    )


def new_server(model: str, load_settings: dict[str, Any], settings: ServeSettings, **callbacks: Any) -> Server:
    """Returns a server of a model, which is found, and downloaded where need be, but not loaded yet.

    Args:
        model: as for `registry.load`.
        load_settings: likewise.
        settings: how to serve.
        **callbacks: as for `Server`.

    Raises:
        What `registry.load` does of a model that cannot be found or served.
    """
    asked = LoadSettings(**load_settings)
    found = find(PluginIndex(), model, revision=asked.revision, plugin=asked.plugin)
    architecture = found.resolution.architecture

    def new_tokenizer(max_length: int) -> TextTokenizer:
        return build_tokenizer(read_files(found.checkpoint, architecture), architecture, max_length=max_length)

    name = Path(model).name if Path(model).exists() else model
    return Server(settings, Load(model, load_settings), new_tokenizer, names=(name,), **callbacks)
