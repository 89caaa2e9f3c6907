"""An answer in the words of `/v1/responses`: events, and the response that they build."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipezoo.serve.replies.heading import Heading
from pipezoo.serve.replies.response_items import CallItem, Event, Item, MessageItem, ReasoningItem
from pipezoo_core.chat_responses import ResponseDelta, ResponseParser
from pipezoo_core.request import FinishReason, TextGenerationOutput, Usage

__all__ = ["ResponsesReply"]


class ResponsesReply:
    """Makes the events of a response, and the response of the same.

    Items are in the order in which they become certain. What one output makes certain at once has the rest of a call
    first, and then reasoning, text and calls; so a whole answer, which is one output, has its text before its calls,
    where a stream may have some of it behind them.

    Args:
        heading: id, model and time.
        parser: reads the answer.
        echoed: fields of the request that come back.
        num_tokens: returns how many tokens a text has.
    """

    def __init__(
        self,
        heading: Heading,
        parser: ResponseParser,
        *,
        echoed: Mapping[str, Any],
        num_tokens: Callable[[str], int],
    ) -> None:
        self._heading = heading
        self._parser = parser
        self._echoed = echoed
        self._num_tokens = num_tokens
        self._items: list[Item] = []
        self._ended: list[Event] = []

    def begin(self) -> list[Event]:
        """Returns the first events."""
        kinds = ("response.created", "response.in_progress")
        return [{"type": kind, "response": self._response("in_progress")} for kind in kinds]

    def events(self, output: TextGenerationOutput) -> list[Event]:
        """Returns what an output makes certain, and where it is the last one, the end."""
        found = list(self._grown(self._parser.feed(output.text)))
        if not output.is_done:
            return found
        is_cut = output.finish_reason is FinishReason.LENGTH
        found += self._grown(self._parser.finish(is_cut=is_cut))
        if not self._items:
            found += self._new(MessageItem(0))
        status = "incomplete" if is_cut else "completed"
        found += self._end_item(status)
        response = self._response(status, usage=output.usage)
        if is_cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        found.append({"type": f"response.{status}", "response": response})
        return found

    def whole(self, output: TextGenerationOutput) -> Event:
        """Returns the response of a whole answer."""
        response: Event = self.events(output)[-1]["response"]
        return response

    def _grown(self, delta: ResponseDelta) -> Iterator[Event]:
        pieces = list(delta.tool_calls)
        while pieces and pieces[0].name is None:  # the rest of a call that is open, which what follows would end
            yield from self._items[-1].grow(pieces.pop(0).arguments)
        if delta.reasoning:
            if not isinstance(self._open, ReasoningItem):
                yield from self._new(ReasoningItem(len(self._items)))
            yield from self._items[-1].grow(delta.reasoning)
        if delta.content:
            if not isinstance(self._open, MessageItem):
                yield from self._new(MessageItem(len(self._items)))
            yield from self._items[-1].grow(delta.content)
        for piece in pieces:
            if piece.name is not None:
                yield from self._new(CallItem(len(self._items), piece.name))
            if piece.arguments:
                yield from self._items[-1].grow(piece.arguments)

    @property
    def _open(self) -> Item | None:
        return self._items[-1] if len(self._items) > len(self._ended) else None

    def _new(self, item: Item) -> Iterator[Event]:
        yield from self._end_item("completed")
        self._items.append(item)
        yield from item.begin()

    def _end_item(self, status: str) -> list[Event]:
        if self._open is None:
            return []
        self._ended.append(self._open.plain(status))
        return self._items[-1].end(status)

    def _response(self, status: str, usage: Usage | None = None) -> Event:
        return {
            "id": self._heading.id,
            "object": "response",
            "created_at": self._heading.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._heading.model,
            "output": [*self._ended],
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            **self._echoed,
            "usage": None if usage is None else self._usage(usage),
        }

    def _usage(self, usage: Usage) -> Event:
        reasoning = "".join(item.text for item in self._items if isinstance(item, ReasoningItem))
        return {
            "input_tokens": usage.num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.num_cached_tokens},
            "output_tokens": usage.num_generated_tokens,
            "output_tokens_details": {"reasoning_tokens": self._num_tokens(reasoning) if reasoning else 0},
            "total_tokens": usage.num_prompt_tokens + usage.num_generated_tokens,
        }
