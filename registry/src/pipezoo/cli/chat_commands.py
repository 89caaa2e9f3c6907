"""What a chat understands besides messages: lines that begin with a slash. None of them goes to the model."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Any

import typer

from pipezoo.cli.chat_file import read_messages, write_messages
from pipezoo_core.errors import InvalidRequestError
from pipezoo_core.request import ChatMessage
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.structured_output import check_constraint

__all__ = ["ChatCommands", "ChatState"]

_AS_WRITTEN = ("grammar", "json_schema", "regex")  # settings that are texts, whatever they look like


class ChatState:
    """What commands change of a chat.

    Args:
        defaults: the model's sampling settings; None where a server has them.
        system: what the model is told before the chat, if anything.
        sampling: settings that differ from the defaults.

    Attributes:
        messages: of the chat so far, the system's first.
        sampling: settings that differ from the defaults.
    """

    def __init__(self, defaults: SamplingParams | None, *, system: str | None, sampling: dict[str, Any]) -> None:
        self._defaults = defaults
        self.messages: list[ChatMessage] = []
        self.sampling = sampling
        self.tell(system or "")

    @property
    def system(self) -> str:
        """What the model is told before the chat; empty for nothing."""
        return next((str(message["content"]) for message in self.messages[:1] if message["role"] == "system"), "")

    @property
    def is_remote(self) -> bool:
        """Whether a server has the settings that were not set here."""
        return self._defaults is None

    @property
    def in_force(self) -> dict[str, object]:
        """All sampling settings; where a server has the others, those that were set here."""
        if self._defaults is not None:
            return dict(self._defaults.updated(**self.sampling))
        return {name: value for name, value in SamplingParams(**self.sampling) if name in self.sampling}

    def tell(self, system: str) -> None:
        """Tells the model something else before the chat, which goes on; nothing, where the text is empty."""
        rest = self.messages[1:] if self.system else self.messages
        self.messages = [*([{"role": "system", "content": system}] if system else []), *rest]

    def reset(self) -> None:
        """Forgets all messages but the system's."""
        self.messages = self.messages[:1] if self.system else []

    def set(self, name: str, value: object) -> None:
        """Changes a sampling setting.

        Raises:
            InvalidSettingError: it is unknown or out of range. It stays as it was then.
            InvalidGrammarError: the schema, the regular expression or the grammar cannot be used. Likewise.
            MissingDependencyError: one of these is set, and llguidance is not installed. Likewise.
        """
        changed = {**self.sampling, name: value}
        if self._defaults is None:
            SamplingParams(**changed)  # the server checks what an answer is held to
        else:
            check_constraint(self._defaults.updated(**changed))
        self.sampling = changed


class ChatCommands:
    """Runs commands on a chat.

    Args:
        state: what they change.

    Attributes:
        is_over: whether the user has asked to leave.
    """

    def __init__(self, state: ChatState) -> None:
        self._state = state
        self.is_over = False
        self._commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "/help": ("", "list the commands", self._help),
            "/reset": ("", "begin anew; what the model is told before the chat stays", self._reset),
            "/system": ("TEXT", "tell the model TEXT before the chat; without TEXT, nothing", self._system),
            "/set": ("NAME VALUE", "change a sampling setting; without NAME, show all", self._set),
            "/save": ("FILE", "write the messages to FILE", self._save),
            "/load": ("FILE", "go on with the messages of FILE", self._load),
            "/exit": ("", "end, as Ctrl-D does", self._exit),
        }

    @property
    def names(self) -> list[str]:
        """The commands there are."""
        return list(self._commands)

    def run(self, line: str) -> None:
        """Runs one command, given as the user wrote it.

        Raises:
            InvalidRequestError: there is no such command, or it lacks what it needs, or has too much.
            InvalidSettingError: of `/set`.
            UnreadableFileError: of `/load` and `/save`.
        """
        name, _, rest = line.partition(" ")
        if name not in self._commands:
            near = difflib.get_close_matches(name, self.names, n=1)
            raise InvalidRequestError(
                f"there is no command {name!r}",
                allowed=self.names,
                cure=f"Did you mean {near[0]!r}?" if near else 'To send it as a message, put it between """.',
            )
        wants, _, run = self._commands[name]
        if rest.strip() and not wants:
            raise InvalidRequestError(f"{name} takes nothing behind it", found=rest.strip())
        run(rest.strip())

    def _help(self, _: str) -> None:
        for name, (wants, meaning, _run) in self._commands.items():
            typer.echo(f"  {f'{name} {wants}':<18} {meaning}", err=True)
        typer.echo('A message of several lines begins and ends with """, or is pasted.', err=True)

    def _reset(self, _: str) -> None:
        self._state.reset()
        typer.echo("The chat begins anew.", err=True)

    def _system(self, text: str) -> None:
        self._state.tell(text)
        typer.echo(f"Before the chat the model is told: {text or 'nothing'}", err=True)

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if name and not value.strip():
            raise InvalidRequestError(f"/set {name} lacks a value", allowed=f"/set {name} VALUE, or /set alone")
        if name:
            self._state.set(name, _parsed(name, value.strip()))
        for known, current in self._state.in_force.items():
            if name in ("", known):
                typer.echo(f"  {known} = {current}", err=True)
        if not name and self._state.is_remote:
            typer.echo("  The others are as the server has them.", err=True)

    def _save(self, name: str) -> None:
        path = write_messages(_file_name("/save", name), self._state.messages)
        typer.echo(f"{len(self._state.messages)} messages are in {path}.", err=True)

    def _load(self, name: str) -> None:
        self._state.messages = read_messages(_file_name("/load", name))
        typer.echo(f"The chat goes on after {len(self._state.messages)} messages.", err=True)

    def _exit(self, _: str) -> None:
        self.is_over = True


def _file_name(command: str, name: str) -> str:
    if not name:
        raise InvalidRequestError(f"{command} needs the name of a file", allowed=f"{command} FILE")
    return name


def _parsed(name: str, value: str) -> object:
    """Returns what the user means: JSON, `none`, or the text as it is."""
    if value.lower() == "none":
        return None
    try:
        return value if name in _AS_WRITTEN else json.loads(value)
    except (ValueError, RecursionError):
        return value
