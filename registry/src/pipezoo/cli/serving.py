"""What `pipezoo serve` does, and shows while it does it."""

from __future__ import annotations

import logging
import sys
from typing import Any

import typer

from pipezoo_core.errors import MissingDependencyError

__all__ = ["serve_model"]

_NUM_SHOWN = 5  # of the lines that say how far the weights are


def serve_model(model: str, load_settings: dict[str, Any], *, api_key_file: str | None, **serve_settings: Any) -> None:
    """Serves a model until it is told to end.

    Args:
        model: as for `registry.load`.
        load_settings: likewise; None is for what was not given.
        api_key_file: a file with keys, one a line.
        **serve_settings: of `ServeSettings`.

    Raises:
        MissingDependencyError: the server's packages are not installed.
        InvalidSettingError: a setting is not valid, or the address cannot be had.
        EngineLostError: the engine died, and is not to be started again.
        What `registry.load` does.
    """
    try:
        from pipezoo.serve.http.api_keys import read_api_keys
        from pipezoo.serve.run import serve
        from pipezoo.serve.settings import ServeSettings
    except ImportError as error:
        if (error.name or "").startswith("pipezoo"):
            raise
        raise MissingDependencyError(
            "the server needs packages that are not installed",
            found=error.name,
            cure="Try: pip install 'pipezoo[serve]'",
        ) from error

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, stream=sys.stderr)
    keys = () if api_key_file is None else read_api_keys(api_key_file)
    settings = ServeSettings(api_keys=keys, **serve_settings)
    serve(model, {name: value for name, value in load_settings.items() if value is not None}, settings, say=_say)


def _say(line: str) -> None:
    typer.echo(line, err=True)
