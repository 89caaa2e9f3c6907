"""Text that a command reads: its prompt, and standard input."""

from __future__ import annotations

import sys

from pipezoo_core.errors import EmptyPromptError, InvalidRequestError

__all__ = ["decoded", "prompt_text"]

_FROM_STDIN = "-"


def prompt_text(argument: str) -> str:
    """Returns the prompt that an argument means: itself, or for `-` standard input without its last line break.

    Raises:
        EmptyPromptError: it is empty.
        InvalidRequestError: standard input is not text in its encoding.
    """
    text = _stdin_text() if argument == _FROM_STDIN else argument
    if not text:
        raise EmptyPromptError("the prompt is empty", cure="Give at least one character of text.")
    return text


def decoded(content: bytes, encoding: str, name: str) -> str:
    """Returns bytes as text, its line breaks as Python has them.

    Raises:
        InvalidRequestError: the bytes are not text in this encoding; the message calls them by the name.
    """
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{name} is not {encoding.upper()} text",
            found=f"byte {content[error.start]:#04x} at offset {error.start}",
            cure=f"Convert it: iconv -t {encoding}",
        ) from error
    return text.replace("\r\n", "\n")


def _stdin_text() -> str:
    return decoded(sys.stdin.buffer.read(), sys.stdin.encoding, "standard input").removesuffix("\n")
