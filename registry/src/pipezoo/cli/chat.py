"""The chat in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from pipezoo_core.errors import InvalidRequestError

if TYPE_CHECKING:
    from pipezoo_core.pipeline import TextGenerationPipeline

__all__ = ["ChatSession"]

_EXIT, _RESET = "/exit", "/reset"


class ChatSession:
    """Owns the messages of one chat.

    Args:
        llm: answers.
        system: what it is told before the chat, if anything.
        sampling: settings of its answers.
    """

    def __init__(self, llm: TextGenerationPipeline, *, system: str | None, sampling: dict[str, Any]) -> None:
        self._llm = llm
        self._sampling = sampling
        self._beginning = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._beginning)

    def run(self) -> None:
        """Reads lines and answers them until the user leaves."""
        typer.echo(f"{_RESET} begins anew, {_EXIT} or Ctrl-D ends, Ctrl-C stops an answer.")
        while (line := self._read()) is not None:
            if line == _RESET:
                self._messages = list(self._beginning)
            elif line:
                self._answer(line)

    def _read(self) -> str | None:
        try:
            line = input("> ").strip()
        except EOFError:
            typer.echo()
            return None
        except KeyboardInterrupt:
            typer.echo()
            return ""
        return None if line == _EXIT else line

    def _answer(self, line: str) -> None:
        """Streams the answer; what there is of it stays in the chat when the user stops it."""
        messages = [*self._messages, {"role": "user", "content": line}]
        pieces: list[str] = []
        try:
            for piece in self._llm.stream(messages, **self._sampling):
                pieces.append(piece)
                typer.echo(piece, nl=False)
            typer.echo()
        except KeyboardInterrupt:
            typer.echo(" …")
        except InvalidRequestError as error:  # most often the chat has outgrown the context
            typer.secho(f"{error} {_RESET} begins anew.", fg=typer.colors.RED, err=True)
            return
        self._messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
