"""A chat as a JSON file: `{"messages": [{"role": …, "content": …}, …]}`, as chat interfaces over HTTP take it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipezoo_core.errors import CorruptCheckpointError, InvalidRequestError
from pipezoo_core.json_file import read_json_object
from pipezoo_core.local_file import local_path
from pipezoo_core.request import ChatMessage

__all__ = ["read_messages", "write_messages"]

_FORM = '{"messages": [{"role": "user", "content": "Hello"}, …]}, all of them text'


def read_messages(name: str) -> list[ChatMessage]:
    """Returns the messages of a file.

    Raises:
        UnreadableFileError: the file is not there, or the system does not let it be read.
        InvalidRequestError: it is not such a file.
    """
    path = local_path(name)
    try:
        messages = read_json_object(path).get("messages")
    except CorruptCheckpointError as error:
        raise _no_chat(path, error.found or error.what) from error
    if not isinstance(messages, list):
        raise _no_chat(path, "no list 'messages'")
    for number, message in enumerate(messages, start=1):
        if not _is_message(message):
            raise _no_chat(path, f"message {number} lacks a role or its text")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def write_messages(name: str, messages: Sequence[ChatMessage]) -> Path:
    """Writes messages to a file, whole or not at all, and returns its path. It may take the place of another chat.

    Raises:
        InvalidRequestError: the file is there, and is no chat; or it cannot be written.
        UnreadableFileError: what is there cannot be read.
    """
    path = local_path(name)
    if os.path.lexists(path):
        read_messages(name)  # what is no chat is not ours to overwrite
    text = json.dumps({"messages": list(messages)}, ensure_ascii=False, indent=1)
    try:
        _replace(path, text + "\n")
    except (OSError, ValueError) as error:  # a name may have characters that no name has
        raise InvalidRequestError(f"{path} cannot be written", found=error, cure="Give another name.") from error
    return path


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", errors="replace", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(text)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _no_chat(path: Path, found: object) -> InvalidRequestError:
    return InvalidRequestError(f"{path} is not a chat", found=found, allowed=_FORM)
