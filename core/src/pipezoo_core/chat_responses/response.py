"""What a chat answer is made of: reasoning, content and tool calls, as a whole and in pieces."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["ChatResponse", "ResponseDelta", "ToolCall", "ToolCallDelta", "new_call_id"]

_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH = 9  # Mistral's chat templates refuse ids of any other length, and no other template minds


def new_call_id() -> str:
    """Returns an id for a tool call: nine letters and digits, which every chat template accepts."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for.

    Attributes:
        name: of the function.
        arguments: as the model wrote them, JSON text in the good case: nothing says that the model writes it well, and
            an answer that was cut short ends somewhere.
    """

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call.

    Attributes:
        index: which of the answer's calls it belongs to, from 0 on.
        name: of the function, in a call's first piece alone.
        arguments: a piece of the arguments; together they are those of the whole.
    """

    index: int
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class ResponseDelta:
    """What a piece of an answer's text has made certain."""

    reasoning: str = ""
    content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.tool_calls)


@dataclass(frozen=True, slots=True)
class ChatResponse:
    """A whole answer.

    Attributes:
        content: what is meant to be read.
        reasoning: what the model wrote before, between the marks of its thoughts.
        tool_calls: what it asks to be called.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @classmethod
    def joined(cls, deltas: Iterable[ResponseDelta]) -> ChatResponse:
        """Returns the answer that pieces make, in their order."""
        content, reasoning = [], []
        names: list[str] = []
        arguments: list[list[str]] = []
        for delta in deltas:
            content.append(delta.content)
            reasoning.append(delta.reasoning)
            for piece in delta.tool_calls:
                if piece.name is not None:
                    names.append(piece.name)
                    arguments.append([])
                arguments[piece.index].append(piece.arguments)
        calls = tuple(ToolCall(name, "".join(pieces)) for name, pieces in zip(names, arguments, strict=True))
        return cls("".join(content), "".join(reasoning), calls)
