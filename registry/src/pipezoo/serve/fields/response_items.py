"""The items of a conversation in the words of `/v1/responses`, and as messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Tag

from pipezoo.serve.fields.body import Body, Listed

__all__ = ["InputItem", "messages_of"]


class ContentPart(Body):
    """A part of a message's text. Nothing but text is read, and nothing is fetched."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class MessageItem(Body):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Listed[ContentPart]
    id: str | None = None
    status: str | None = None


class FunctionCallItem(Body):
    """A call that the model has made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class FunctionCallOutputItem(Body):
    """What a call has returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Listed[ContentPart]
    id: str | None = None
    status: str | None = None


class ReasoningPart(Body):
    """A part of what the model wrote before its answer."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Body):
    """What the model wrote before its answer."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Listed[ReasoningPart] | None = None
    content: Listed[ReasoningPart] | None = None
    status: str | None = None


def _kind(item: Any) -> str | None:
    """Returns an item's type; what is no text becomes the name of none, and what is no item has none."""
    if not isinstance(item, Mapping):
        return getattr(item, "type", None)
    kind = item.get("type")
    if kind is None:
        return "message"
    return kind if isinstance(kind, str) else type(kind).__name__


InputItem: TypeAlias = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]
"""An item of a conversation; one without a type is a message."""


def messages_of(items: Sequence[InputItem]) -> list[dict[str, Any]]:
    """Returns the messages that items are: an assistant's reasoning, text and calls are one message."""
    messages: list[dict[str, Any]] = []
    for item in items:
        match item:
            case MessageItem(role="assistant"):
                _assistant(messages)["content"].append(_text(item.content))
            case MessageItem():
                role = "system" if item.role == "developer" else item.role
                messages.append({"role": role, "content": _text(item.content)})
            case FunctionCallItem():
                function = {"name": item.name, "arguments": item.arguments}
                calls = _assistant(messages).setdefault("tool_calls", [])
                calls.append({"id": item.call_id, "type": "function", "function": function})
            case FunctionCallOutputItem():
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
            case ReasoningItem():
                parts = _assistant(messages).setdefault("reasoning_content", [])
                parts += [part.text for part in item.content or ()]
    return [_joined(message) for message in messages]


def _assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the assistant's message that the last items belong to, a new one where there is none.

    Its texts are lists of their parts.
    """
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": []})
    return messages[-1]


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    texts = {name: message[name] for name in ("content", "reasoning_content") if name in message}
    return {**message, **{name: "".join(parts) for name, parts in texts.items()}}


def _text(content: str | Sequence[ContentPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)
