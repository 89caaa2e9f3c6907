"""`pipezoo plugins` and `pipezoo doctor`: what is installed, and whether it works."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipezoo import registry
from pipezoo.cli.failures import errors_as_text
from pipezoo.discovery.index import PluginInfo
from pipezoo.discovery.published import PUBLISHED

if TYPE_CHECKING:
    from rich.table import Table

    from pipezoo.diagnosis.diagnosis import Diagnosis

__all__ = ["doctor", "plugins"]

_JSON = typer.Option("--json", help="Print JSON.")
_NOT_INSTALLED = "not installed"


def plugins(
    *,
    available: Annotated[
        bool, typer.Option("--available", help="Also list the plugins that pipezoo has and that are not installed.")
    ] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """List the installed plugins and their state."""
    with errors_as_text():
        found = registry.plugins()
    rows = sorted(
        [*map(_row, found), *(_others(found) if available else ())], key=lambda row: (row["name"], row["distribution"])
    )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif rows:
        _print(_table(rows))
    else:
        typer.echo("No plugins are installed. Try: pip install pipezoo-llama")


def doctor(*, as_json: Annotated[bool, _JSON] = False) -> None:
    """Look at versions, torch, kernels, the Hub's cache and every plugin, and say what is broken.

    Every plugin is imported for it. The exit status is 1 where something keeps a model from being served.
    """
    from pipezoo.diagnosis.diagnosis import diagnose
    from pipezoo.discovery.index import PluginIndex

    with errors_as_text():
        found = diagnose(PluginIndex())
    if as_json:
        sections = {name: list(map(asdict, findings)) for name, findings in found.sections.items()}
        said = {"is_broken": found.is_broken, "findings": sections, "plugins": list(map(_row, found.plugins))}
        typer.echo(json.dumps(said, indent=2))
    else:
        _print(*_findings(found), _table(map(_row, found.plugins)))
        typer.echo("Something is broken: see above." if found.is_broken else "Nothing is broken.")
    if found.is_broken:
        raise typer.Exit(1)


def _row(info: PluginInfo) -> dict[str, Any]:
    return {**asdict(info), "cure": info.cure}


def _others(found: Sequence[PluginInfo]) -> Iterator[dict[str, Any]]:
    installed = {info.distribution for info in found}
    for name, plugin in PUBLISHED.items():
        if plugin not in installed:
            row = {"name": name, "distribution": plugin, "version": "", "module": "", "state": _NOT_INSTALLED}
            yield {**row, "reason": None, "cure": f"pip install {plugin}"}


def _table(rows: Iterable[dict[str, Any]]) -> Table:
    from rich.table import Column, Table
    from rich.text import Text

    columns = ("model type", "plugin", "version", "state", "reason and cure")
    table = Table(*(Column(name, overflow="fold") for name in columns))
    for row in rows:
        why = "\n".join(filter(None, (row["reason"], row["cure"])))
        cells = (row["name"], row["distribution"], row["version"], row["state"], why)
        table.add_row(*map(Text, cells))  # as text, brackets are not taken for markup
    return table


def _findings(found: Diagnosis) -> Iterator[Table]:
    from rich.table import Table
    from rich.text import Text

    for name, findings in found.sections.items():
        table = Table(title=name, title_justify="left", show_header=False)
        for finding in findings:
            said = "\n".join(filter(None, (finding.value, finding.cure)))
            table.add_row(*map(Text, (finding.name, str(finding.status), said)))
        if findings:
            yield table


def _print(*tables: Table) -> None:
    from rich.console import Console

    Console().print(*tables, sep="\n")
