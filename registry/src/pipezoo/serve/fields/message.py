"""The messages of a chat."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pipezoo.serve.fields.body import Body, Listed

__all__ = ["MAX_MESSAGES", "FunctionCall", "Message", "TextPart", "ToolCall"]

MAX_MESSAGES = 8192
"""Most messages of a chat."""


class TextPart(Body):
    """A part of a message. Nothing but text is read, and nothing is fetched."""

    type: Literal["text"]
    text: str


class FunctionCall(Body):
    """A call that the model has made."""

    name: str
    arguments: str | dict[str, Any] = Field(description="A JSON object, or its text.")


class ToolCall(Body):
    """A call that the model has made."""

    type: Literal["function"] = "function"
    id: str | None = None
    index: int | None = None
    function: FunctionCall


class Message(Body):
    """A message of a chat, as clients send it, and as they got it from the server."""

    role: str
    content: str | Listed[TextPart] | None = None
    name: str | None = None
    tool_calls: Listed[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    def plain(self) -> dict[str, Any]:
        """Returns the message as chat templates know it."""
        found = self.given()
        if isinstance(self.content, list):
            found["content"] = [part.given() for part in self.content]
        if self.tool_calls is not None:
            found["tool_calls"] = [{**call.given(), "function": call.function.given()} for call in self.tool_calls]
        return found
