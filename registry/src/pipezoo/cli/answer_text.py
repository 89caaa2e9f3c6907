"""A model's text on standard output. At a terminal, what would command the terminal is shown instead of obeyed."""

from __future__ import annotations

import sys

import typer

__all__ = ["show_piece", "visible"]

_COMMANDS = [*range(0x20), *range(0x7F, 0xA0)]  # C0, DEL and C1; a sequence that moves the cursor begins with one
_ESCAPES = {code: f"\\x{code:02x}" for code in _COMMANDS if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    r"""Returns a text with control characters as escapes such as `\x1b`; line breaks and tabs stay."""
    return text.translate(_ESCAPES)


def show_piece(piece: str) -> None:
    """Writes a piece of an answer at once: to a terminal without control characters, to others as it is."""
    typer.echo(visible(piece) if sys.stdout.isatty() else piece, nl=False, color=True)  # color: keep what is escaped
