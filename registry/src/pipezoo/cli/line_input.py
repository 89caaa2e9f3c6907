"""Where a chat's lines come from: a person at a terminal, with a history and line editing, or standard input."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipezoo.cli.text_input import decoded

if TYPE_CHECKING:
    from prompt_toolkit.history import History

__all__ = ["LineInput", "PipedInput", "TerminalInput", "line_input", "unquoted"]

_QUOTES = '"""'


class LineInput(Protocol):
    """Yields messages and commands. What begins with three quotes goes on, over lines, until they close."""

    is_terminal: bool

    def read(self) -> str | None:
        """Returns the next one, and None at the end."""
        ...


def line_input() -> LineInput:
    """Returns the input that fits what standard input and output are."""
    return TerminalInput() if sys.stdin.isatty() and sys.stdout.isatty() else PipedInput()


def unquoted(text: str) -> str:
    """Returns a message without the quotes around it, and without space there."""
    if text.startswith(_QUOTES):
        text = text.removeprefix(_QUOTES).removesuffix(_QUOTES)
    return text.strip()


class PipedInput:
    """Reads standard input, line by line, and prints nothing."""

    is_terminal = False

    def read(self) -> str | None:
        """Returns the next line, or lines.

        Raises:
            InvalidRequestError: a line is not text in the encoding of standard input. The next one may be.
        """
        lines = [self._line()]
        while lines[-1] and _is_open("".join(lines)):
            lines.append(self._line())
        return "".join(lines) or None

    def _line(self) -> str:
        return decoded(sys.stdin.buffer.readline(), sys.stdin.encoding, "a line of standard input")


class TerminalInput:
    """Reads a terminal, with the history of earlier chats. Ctrl-C begins the line anew."""

    is_terminal = True

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.filters import Condition

        self._session: PromptSession[str] = PromptSession(
            "> ",
            history=_history(),
            multiline=Condition(lambda: _is_open(self._session.default_buffer.text)),
            prompt_continuation="  ",
            enable_suspend=True,
        )

    def read(self) -> str | None:
        """Returns what the user has sent; an empty text where it was thrown away."""
        try:
            return self._session.prompt()
        except KeyboardInterrupt:
            return ""
        except EOFError:
            return None


def _is_open(text: str) -> bool:
    """Whether three quotes have begun a text, and none have ended it."""
    text = text.strip()
    return text.startswith(_QUOTES) and not (len(text) >= 2 * len(_QUOTES) and text.endswith(_QUOTES))


def _history() -> History:
    """Returns the history in the user's state folder; one that is forgotten where that cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class ChatHistory(FileHistory):
        def store_string(self, string: str) -> None:
            with suppress(OSError):  # a disk that is full by now is no reason to end a chat
                super().store_string(string)

    try:
        path = _state_folder() / "chat_history"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)  # what people say to a model is not for others to read
    except (OSError, RuntimeError):  # there may be no home either
        return InMemoryHistory()
    return ChatHistory(path)


def _state_folder() -> Path:
    """Returns where programs keep what they remember of a user, by each system's custom."""
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "pipezoo"
