"""How a command ends that cannot do what it was asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from pipezoo_core.errors import PipezooError

__all__ = ["errors_as_text", "say_error"]


def say_error(error: PipezooError) -> None:
    """Prints an error and its notes on standard error, in red where a terminal may show colors."""
    text = "\n".join([f"error: {error}", *getattr(error, "__notes__", [])])
    color = False if os.environ.get("NO_COLOR") else None
    typer.echo(typer.style(text, fg=typer.colors.RED), err=True, color=color)


@contextmanager
def errors_as_text() -> Iterator[None]:
    """Prints errors that are meant for users as text, and ends with status 1; others keep their traceback."""
    try:
        yield
    except PipezooError as error:
        say_error(error)
        raise typer.Exit(1) from error
