"""`pipezoo new-plugin`: writes the package of a plugin, or brings one up to date."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipezoo.cli.failures import errors_as_text
from pipezoo.discovery.published import PUBLISHED
from pipezoo_core.errors import InvalidSettingError

__all__ = ["new_plugin"]

_NEXT = """\
{folder} is written. Next:

    cd {folder}
    pip install -e '.[test]'
    pytest

docs/writing-a-plugin.md leads through the files."""


def new_plugin(
    model_type: Annotated[
        str | None, typer.Argument(help="The model_type that the plugin serves.", show_default=False)
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where to write it; by default a folder of the package's name.")
    ] = None,
    from_transformers: Annotated[
        str | None, typer.Option(help="Start from the config and the weights' names of this type of transformers.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The package's name; by default pipezoo- and the type.")] = None,
    description: Annotated[str | None, typer.Option(help="One line that says which models it serves.")] = None,
    author: Annotated[str | None, typer.Option(help="The author's name.")] = None,
    email: Annotated[str | None, typer.Option(help="The author's address.")] = None,
    license_name: Annotated[str | None, typer.Option("--license", help="Apache-2.0, MIT or BSD-3-Clause.")] = None,
    defaults: Annotated[bool, typer.Option("--defaults", help="Ask nothing, also at a terminal.")] = False,
    update: Annotated[
        Path | None,
        typer.Option(help="Bring the package in this folder up to date instead, and keep what was changed."),
    ] = None,
) -> None:
    """Write the package of a new plugin: a plain decoder to start from, with the test that compares it.

    At a terminal it asks for what no option says.
    """
    from pipezoo.authoring.new_plugin import NewPlugin, update_plugin
    from pipezoo.authoring.reference import reference_of

    with errors_as_text():
        if update is not None:
            update_plugin(update)
            typer.echo(f"{update} is up to date with the newest template. `git diff` shows what has changed.")
            return
        if model_type is None:
            raise InvalidSettingError("no model_type is given", cure="For instance: pipezoo new-plugin myarch")
        plugin = NewPlugin(
            model_type=model_type,
            distribution=name,
            description=description,
            author_name=author,
            author_email=email,
            license=license_name,
            reference={} if from_transformers is None else reference_of(from_transformers),
        )
        written = folder or Path(plugin.name)
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        plugin.write(written, is_asked=is_terminal and not defaults)
        if model_type in PUBLISHED:
            typer.echo(
                f"{PUBLISHED[model_type]} serves {model_type!r}, too: where both are installed, one is pinned.\n"
            )
        typer.echo(_NEXT.format(folder=written))
