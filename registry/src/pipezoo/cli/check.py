"""Runs the conformance kit on an installed plugin, and shows what came of it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.testing import CHECKS
from pipezoo_core.testing.checked_distribution import Answer, Outcome, check_distribution

__all__ = ["check_plugin"]

_STYLES = {Answer.passed: "green", Answer.failed: "bold red", Answer.skipped: "yellow"}
_MARKS = {Answer.passed: "ok", Answer.failed: "FAILED", Answer.skipped: "skipped"}


def check_plugin(
    distribution: str, *, reference: str | None, only: Sequence[str], model_types: Sequence[str], as_json: bool
) -> bool:
    """Runs the checks and prints each outcome as it comes; with `as_json` one object per line.

    Args:
        distribution: of the plugin.
        reference: `module:Class`; None for transformers' class.
        only: names of checks; none for all.
        model_types: on whose configs; none for all that the plugin claims.
        as_json: for programs.

    Returns:
        Whether none failed, and one passed at least: a plugin of which nothing could be checked is not right.

    Raises:
        InvalidSettingError: there is no such check, or no such class.
        ConformanceError: the distribution is not installed, serves nothing, or does not say what it serves.
    """
    names = [check.name for check in CHECKS]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise InvalidSettingError("there is no such check", found=unknown, allowed=names)
    console = Console()
    counts = dict.fromkeys(Answer, 0)
    with TemporaryDirectory(prefix="pipezoo-check-") as folder:
        made = None if reference is None else _named(reference)
        for outcome in check_distribution(
            distribution, Path(folder), reference=made, only=only, model_types=model_types
        ):
            counts[outcome.answer] += 1
            if as_json:
                typer.echo(json.dumps(asdict(outcome)))
            else:
                console.print(_line(outcome))
    if not as_json:
        typer.echo(", ".join(f"{count} {answer}" for answer, count in counts.items()))
    return counts[Answer.passed] > 0 and not counts[Answer.failed]


def _line(outcome: Outcome) -> Text:
    line = Text()
    line.append(f"{_MARKS[outcome.answer]:8}", style=_STYLES[outcome.answer])
    line.append(f"{outcome.model_type}  {outcome.check}")
    if outcome.message:
        line.append(f"\n         {outcome.message}")
    return line


def _named(reference: str) -> Any:
    """Imports a class by the name of its module, from the working directory, too."""
    module, _, name = reference.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # the author's module may fail in any way
        raise InvalidSettingError(
            "there is no such reference implementation",
            found=f"{reference} ({type(error).__name__}: {error})",
            allowed="module:Class",
            cure="For instance --reference my_package.reference:MyModelForCausalLM",
        ) from error
