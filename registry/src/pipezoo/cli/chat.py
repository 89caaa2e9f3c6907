"""One chat: its messages, its settings, and the model's answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from pipezoo.cli.answer import Answer
from pipezoo.cli.answer_text import show_piece
from pipezoo.cli.chat_commands import ChatCommands, ChatState
from pipezoo.cli.failures import say_error
from pipezoo.cli.line_input import LineInput, unquoted
from pipezoo_core.errors import InvalidRequestError, PipezooError
from pipezoo_core.request import ChatMessage

if TYPE_CHECKING:
    from pipezoo.cli.chat_model import ChatModel

__all__ = ["ChatSession"]


class ChatSession:
    """Reads messages and answers them. Answers go to standard output, all else to standard error.

    Args:
        model: answers.
        system: what it is told before the chat, if anything.
        sampling: settings of its answers.
        is_verbose: say after each answer how fast it was.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        system: str | None,
        sampling: dict[str, Any],
        is_verbose: bool,
    ) -> None:
        self._model = model
        self._is_verbose = is_verbose
        self._state = ChatState(model.sampling_params, system=system, sampling=sampling)
        self._commands = ChatCommands(self._state)

    def run(self, lines: LineInput) -> bool:
        """Answers until the user leaves.

        Args:
            lines: where messages and commands come from.

        Returns:
            Whether nothing failed that nobody has seen: at a terminal, always.

        Raises:
            KeyboardInterrupt: Ctrl-C, where this is no terminal. There it only stops the answer.
        """
        if lines.is_terminal:
            typer.echo("/help lists commands, Ctrl-C stops an answer, Ctrl-D ends.", err=True)
        has_failed = False
        while not self._commands.is_over:
            try:
                if (line := lines.read()) is None:
                    break
                self._obey_or_answer(line.strip(), is_terminal=lines.is_terminal)
            except PipezooError as error:
                has_failed = True
                say_error(error)
        return lines.is_terminal or not has_failed

    def _obey_or_answer(self, line: str, *, is_terminal: bool) -> None:
        if line.startswith("/"):
            self._commands.run(line)
        elif text := unquoted(line):
            self._answer([*self._state.messages, {"role": "user", "content": text}], is_terminal=is_terminal)

    def _answer(self, messages: Sequence[ChatMessage], *, is_terminal: bool) -> None:
        """Streams the answer; what there is of it stays in the chat when the user stops it."""
        answer = Answer()
        try:
            self._model.answer(answer, messages, show_piece, **self._state.sampling)
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            show_piece(" …")
        except InvalidRequestError as error:  # most often the chat has outgrown the context
            error.add_note("/reset begins anew.")
            raise
        finally:
            if answer.num_tokens or answer.text:
                typer.echo()
        if answer.text:
            self._state.messages = [*messages, {"role": "assistant", "content": answer.text}]
        if self._is_verbose:
            typer.echo(answer.speed(), err=True)
