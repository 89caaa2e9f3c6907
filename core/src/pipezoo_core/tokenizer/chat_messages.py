"""What a chat has to be before anybody's template sees it: text in every message, and not too much of anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipezoo_core.errors import EmptyPromptError, InvalidRequestError, shown
from pipezoo_core.request import ChatMessage

__all__ = ["check_messages"]

_MAX_VALUES = 1 << 17  # with those inside of others: a thousand messages with a tool's schema of a hundred entries each
_MAX_CHARACTERS = 1 << 24


def check_messages(messages: Sequence[ChatMessage], *others: object) -> None:
    """Checks that a chat is sound, and small enough to be handed to a template. Takes little time for a huge one.

    Args:
        messages: the chat.
        *others: what else the template is given; it counts, too.

    Raises:
        EmptyPromptError: there are no messages.
        InvalidRequestError: a message lacks its role or text, or there are too many values or characters.
    """
    if not messages:
        raise EmptyPromptError("the chat has no messages", cure="Give at least one.")
    _check_amount(messages, others)
    for number, message in enumerate(messages, start=1):
        if not _is_sound(message):
            raise InvalidRequestError(
                f"message {number} of the chat is not sound",
                found=shown(message),
                allowed='a mapping such as {"role": "user", "content": "Hello"}, both of them text; a content may also '
                'be parts such as {"type": "text", "text": "Hello"}, and an assistant\'s None',
            )


def _is_sound(message: object) -> bool:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    if content is None:
        return message["role"] == "assistant"
    return isinstance(content, str) or (isinstance(content, list | tuple) and all(map(_is_text_part, content)))


def _is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _check_amount(messages: Sequence[ChatMessage], others: object) -> None:
    """Counts values and characters, and stops where they are too many; a list that holds itself has endlessly many."""
    num_values, num_characters = 0, 0
    parts: list[object] = [messages, others]
    while parts and num_values <= _MAX_VALUES and num_characters <= _MAX_CHARACTERS:
        part = parts.pop()
        if isinstance(part, str):
            num_characters += len(part)
            continue
        if isinstance(part, Mapping):
            part = [entry for pair in part.items() for entry in pair] if len(part) <= _MAX_VALUES else part
        if isinstance(part, Mapping | list | tuple):
            num_values += len(part)
            parts += part if num_values <= _MAX_VALUES else ()
    if num_values > _MAX_VALUES or num_characters > _MAX_CHARACTERS:
        raise InvalidRequestError(
            "the chat is too large",
            found=f"{len(messages)} messages",
            allowed=f"at most {_MAX_CHARACTERS} characters and {_MAX_VALUES} keys and values in all of them",
            cure="Leave out what the model cannot read anyway: the beginning of the chat, or parts of a document.",
        )
