"""`pipezoo why`: which plugin a model gets, and why."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from pipezoo import registry
from pipezoo.cli import options
from pipezoo.cli.failures import errors_as_text
from pipezoo_core.errors import PipezooError

__all__ = ["why"]

_PARTS = ("what", "found", "allowed", "cure")


def why(
    model: options.Model,
    revision: options.Revision = None,
    plugin: options.Plugin = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, also of a failure.")] = False,
) -> None:
    """Say which plugin a model gets, and why."""
    if not as_json:
        with errors_as_text():
            typer.echo(registry.resolve(model, revision=revision, plugin=plugin))
        return
    try:
        found = registry.resolve(model, revision=revision, plugin=plugin)
    except PipezooError as error:
        typer.echo(json.dumps(_failure(error), indent=2))
        raise typer.Exit(1) from error
    said = {
        "model_type": found.model_type,
        "architectures": list(found.architectures),
        "plugin": found.plugin.distribution,
        "version": found.plugin.version,
        "architecture": found.architecture.name,
        "candidates": [
            {
                "name": candidate.plugin.name,
                "distribution": candidate.plugin.distribution,
                "version": candidate.plugin.version,
                "state": candidate.plugin.state,
                "cure": candidate.plugin.cure,
                "taken": candidate.taken,
                "is_asked": candidate.is_asked,
                "reason": candidate.reason,
            }
            for candidate in found.candidates
        ],
    }
    typer.echo(json.dumps(said, indent=2))


def _failure(error: PipezooError) -> dict[str, Any]:
    parts = {name: None if value is None else str(value) for name, value in vars(error).items() if name in _PARTS}
    notes = [line for note in getattr(error, "__notes__", []) for line in note.splitlines()]
    return {
        "plugin": None,
        "error": {"type": type(error).__name__, "message": str(error), **parts},
        "candidates": notes,
    }
