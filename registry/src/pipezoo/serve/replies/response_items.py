"""The items of a response, as they grow, with the events that say so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from pipezoo_core.chat_responses import new_call_id
from pipezoo_core.request import new_request_id

__all__ = ["CallItem", "Event", "Item", "MessageItem", "ReasoningItem"]

Event = dict[str, Any]


class Item(ABC):
    """An item that grows by pieces of text.

    Args:
        output_index: its place in the response.

    Attributes:
        text: what it has so far.
    """

    prefix: str

    def __init__(self, output_index: int) -> None:
        self.text = ""
        self._place: Event = {"output_index": output_index}
        self._id = f"{self.prefix}_{new_request_id()}"

    @property
    def _at(self) -> Event:
        return {"item_id": self._id, **self._place, "content_index": 0}

    @abstractmethod
    def plain(self, status: str) -> Event:
        """Returns the item as clients see it."""

    def begin(self) -> list[Event]:
        """Returns the events of its beginning, when it has no text yet."""
        return [{"type": "response.output_item.added", **self._place, "item": self.plain("in_progress")}]

    @abstractmethod
    def grow(self, text: str) -> list[Event]:
        """Adds text, and returns the events."""

    @abstractmethod
    def _parts_done(self) -> list[Event]: ...

    def end(self, status: str) -> list[Event]:
        """Returns the events of its end."""
        return [
            *self._parts_done(),
            {"type": "response.output_item.done", **self._place, "item": self.plain(status)},
        ]


class MessageItem(Item):
    """What is meant to be read."""

    prefix = "msg"

    @property
    def _part(self) -> Event:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}

    def plain(self, status: str) -> Event:
        """Returns the message."""
        content = [] if status == "in_progress" else [self._part]
        return {"id": self._id, "type": "message", "status": status, "role": "assistant", "content": content}

    def begin(self) -> list[Event]:
        """Returns the events of the message and of its only part."""
        return [*super().begin(), {"type": "response.content_part.added", **self._at, "part": self._part}]

    def grow(self, text: str) -> list[Event]:
        """Adds text."""
        self.text += text
        return [{"type": "response.output_text.delta", **self._at, "delta": text, "logprobs": []}]

    def _parts_done(self) -> list[Event]:
        return [
            {"type": "response.output_text.done", **self._at, "text": self.text, "logprobs": []},
            {"type": "response.content_part.done", **self._at, "part": self._part},
        ]


class ReasoningItem(Item):
    """What the model wrote before."""

    prefix = "rs"

    def plain(self, status: str) -> Event:
        """Returns the reasoning."""
        content = [] if status == "in_progress" else [{"type": "reasoning_text", "text": self.text}]
        return {"id": self._id, "type": "reasoning", "status": status, "summary": [], "content": content}

    def grow(self, text: str) -> list[Event]:
        """Adds text."""
        self.text += text
        return [{"type": "response.reasoning_text.delta", **self._at, "delta": text}]

    def _parts_done(self) -> list[Event]:
        return [{"type": "response.reasoning_text.done", **self._at, "text": self.text}]


class CallItem(Item):
    """A call that the model asks for; its text is the arguments.

    Args:
        output_index: its place in the response.
        name: of the function.
    """

    prefix = "fc"

    def __init__(self, output_index: int, name: str) -> None:
        super().__init__(output_index)
        self._name = name
        self._call_id = new_call_id()

    @property
    def _at(self) -> Event:
        return {"item_id": self._id, **self._place}

    def plain(self, status: str) -> Event:
        """Returns the call."""
        return {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": self.text,
        }

    def grow(self, text: str) -> list[Event]:
        """Adds a piece of the arguments."""
        self.text += text
        return [{"type": "response.function_call_arguments.delta", **self._at, "delta": text}]

    def _parts_done(self) -> list[Event]:
        return [
            {
                "type": "response.function_call_arguments.done",
                **self._at,
                "name": self._name,
                "arguments": self.text,
            }
        ]
