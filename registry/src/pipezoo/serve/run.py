"""From a model's name to a server that runs, with a terminal in front of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipezoo.discovery.index import PluginIndex
from pipezoo.files.model_files import read_files
from pipezoo.loading.find import find
from pipezoo.loading.settings import LoadSettings
from pipezoo.loading.tokenizer import build_tokenizer, load_delegate
from pipezoo.serve.engine.messages import Load
from pipezoo.serve.server import Server
from pipezoo.serve.settings import ServeSettings
from pipezoo_core.errors import InvalidSettingError

if TYPE_CHECKING:
    from pipezoo_core.tokenizer import TextTokenizer

__all__ = ["new_server", "serve"]

_MAX_UNACCEPTED = 2048  # connections; as many as uvicorn's own listeners let wait


def serve(
    model: str | Path,
    load_settings: dict[str, Any],
    settings: ServeSettings,
    *,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Loads a model and serves it, until SIGTERM or SIGINT.

    Args:
        model: as for `registry.load`.
        load_settings: likewise.
        settings: how to serve.
        on_progress: as of `Server`.
        on_ready: likewise.

    Raises:
        InvalidSettingError: the address cannot be had.
        EngineLostError: the engine died, and is not to be started again.
        What `registry.load` does.
    """
    with bound(settings) as listener:
        asyncio.run(_run(model, load_settings, settings, listener, on_progress, on_ready))


def bound(settings: ServeSettings) -> socket.socket:
    """Returns a socket at the address of the settings, which does not listen yet: nobody would answer.

    Raises:
        InvalidSettingError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        with _at_address_of(settings):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((settings.host, settings.port))
    except InvalidSettingError:
        listener.close()
        raise
    return listener


def listen(listener: socket.socket, settings: ServeSettings) -> None:
    """Has a socket of `bound` listen.

    Raises:
        InvalidSettingError: another server has begun to listen at the address since.
    """
    with _at_address_of(settings):
        listener.listen(_MAX_UNACCEPTED)


@contextmanager
def _at_address_of(settings: ServeSettings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidSettingError(
            "the server cannot listen at this address",
            found=f"{settings.host}, port {settings.port}: {error.strerror}",
            cure="Take another --host or --port, or end the program that has it.",
        ) from error


async def _run(
    model: str | Path,
    load_settings: dict[str, Any],
    settings: ServeSettings,
    listener: socket.socket,
    on_progress: Callable[[int, int], None],
    on_ready: Callable[[str], None],
) -> None:
    server = new_server(model, load_settings, settings, on_progress=on_progress, on_ready=on_ready)
    listen(listener, settings)  # from now on somebody answers
    await server.run(listener)


def new_server(model: str | Path, load_settings: dict[str, Any], settings: ServeSettings, **callbacks: Any) -> Server:
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

    def read_tokenizer() -> Callable[[int], TextTokenizer]:
        files = read_files(found.checkpoint, architecture)
        delegate = load_delegate(files, architecture)
        return lambda max_length: build_tokenizer(files, delegate, max_length=max_length)

    name = Path(model).name if Path(model).exists() else str(model)
    load = Load(str(model), load_settings, reports_pages=settings.kv_events_endpoint is not None)
    return Server(settings, load, read_tokenizer, names=(name,), **callbacks)
