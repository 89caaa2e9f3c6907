"""What `pipezoo serve` does, and shows while it does it."""

from __future__ import annotations

import logging
import sys
from typing import Any

import typer

from pipezoo_core.errors import InvalidSettingError, MissingDependencyError

__all__ = ["serve_model"]

_NUM_SHOWN = 5  # of the lines that say how far the weights are


def serve_model(
    model: str, load_settings: dict[str, Any], *, api_key_file: str | None, log_format: str, **serve_settings: Any
) -> None:
    """Serves a model until it is told to end.

    Args:
        model: as for `registry.load`.
        load_settings: likewise; None is for what was not given.
        api_key_file: a file with keys, one a line.
        log_format: `text` for warnings, `json` for a line of JSON for each request, too.
        **serve_settings: of `ServeSettings`.

    Raises:
        MissingDependencyError: the server's packages are not installed.
        InvalidSettingError: a setting is not valid, or the address cannot be had.
        EngineLostError: the engine died, and is not to be started again.
        What `registry.load` does.
    """
    try:
        from pipezoo.serve.http.api_keys import read_api_keys
        from pipezoo.serve.http.hosts import is_loopback
        from pipezoo.serve.run import serve
        from pipezoo.serve.settings import ServeSettings
    except ImportError as error:
        if (error.name or "").startswith("pipezoo"):
            raise
        raise MissingDependencyError(
            "the server needs packages that are not installed",
            found=error.name,
            cure="Try, in a clone: pip install './registry[serve]'",
        ) from error

    _begin_log(log_format)
    keys = () if api_key_file is None else read_api_keys(api_key_file)
    settings = ServeSettings(api_keys=keys, **serve_settings)
    given = {name: value for name, value in load_settings.items() if value is not None}
    if settings.enable_adapters:
        given.setdefault("lora_paths", [])
    if not (keys or is_loopback(settings.host)):
        _say(
            f"warning: everybody who reaches {settings.host} can use this server, because it has no API keys. "
            "Give it some with --api-key-file, or leave --host at 127.0.0.1."
        )
    _say(f"loading {model}")
    progress = _Progress()
    serve(model, given, settings, on_progress=progress.show, on_ready=lambda address: _say(f"serving at {address}"))


def _begin_log(log_format: str) -> None:
    from pipezoo.serve.log_lines import JSONLines

    if log_format not in ("text", "json"):
        raise InvalidSettingError("the format of the log is not known", found=log_format, allowed="text, json")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, stream=sys.stderr)
    if log_format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JSONLines())
        logging.getLogger("pipezoo.serve").setLevel(logging.INFO)


class _Progress:
    """Says how far the weights are, in a few lines."""

    def __init__(self) -> None:
        self._part = 0

    def show(self, num_done: int, num_all: int) -> None:
        part = num_done * _NUM_SHOWN // max(1, num_all)
        if part > self._part:
            _say(f"loaded and packed {100 * num_done // num_all} % of the weights")
        self._part = part


def _say(line: str) -> None:
    typer.echo(line, err=True)
