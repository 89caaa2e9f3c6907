r"""Chats for templates that show one call of a message, and one text before it.

    assistant: thoughts "It is far.", content "I look.", calls a and b
    tool: the result of a
    tool: the result of b

becomes, so that the template leaves out nothing and names each result after its own call,

    assistant: thoughts "It is far.\n\nI look.", call a
    tool: the result of a
    assistant: call b
    tool: the result of b
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from pipezoo_core.chat_responses.parser import REASONING_FIELDS
from pipezoo_core.request import ChatMessage

__all__ = ["text_of", "with_descriptions", "with_single_calls"]


def with_single_calls(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Returns the messages with one call in each; those that are not sound are left as they are.

    Results that name no call of theirs are those of the calls that have none, in their order; further ones stand behind
    the last one.
    """
    told: list[ChatMessage] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        if not _calls(message):
            told.append(message)
            continue
        results = [*takewhile(_is_result, messages[place:])]
        place += len(results)
        told += _single_calls(message, results)
    return told


def with_descriptions(tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the tools, each of their functions with a description, be it an empty one."""
    return [{**tool, "function": {"description": "", **tool["function"]}} for tool in tools]


def _single_calls(message: ChatMessage, results: Sequence[ChatMessage]) -> list[ChatMessage]:
    calls = _calls(message)
    of_call: list[list[ChatMessage]] = [[] for _ in calls]
    number_of = {call["id"]: number for number, call in enumerate(calls) if isinstance(call.get("id"), str)}
    left_over: list[ChatMessage] = []
    for result in results:
        identity = result.get("tool_call_id")
        number = number_of.get(identity) if isinstance(identity, str) else None
        (left_over if number is None else of_call[number]).append(result)
    without = [of_this for of_this in of_call if not of_this]
    for place, result in enumerate(left_over):
        (without[place] if place < len(without) else of_call[-1]).append(result)
    told: list[ChatMessage] = []
    for number, call in enumerate(calls):
        texts = _one_text(message) if number == 0 else {"role": message["role"], "content": ""}
        told += [{**texts, "tool_calls": [call]}, *of_call[number]]
    return told


def _one_text(message: ChatMessage) -> ChatMessage:
    """Returns a message whose content is a part of its thoughts, where it has both."""
    thoughts = next((message[name] for name in REASONING_FIELDS if message.get(name)), None)
    if not thoughts or not isinstance(thoughts, str) or not (content := text_of(message)):
        return message
    rest = {name: value for name, value in message.items() if name not in REASONING_FIELDS}
    return {**rest, "content": "", "reasoning_content": f"{thoughts}\n\n{content}"}


def text_of(message: ChatMessage) -> str:
    """Returns a message's content as one text, of however many parts it is."""
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return content or ""
    parts = content if isinstance(content, Sequence) else []
    return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


def _calls(message: object) -> list[Mapping[str, Any]]:
    calls = message.get("tool_calls") if isinstance(message, Mapping) and "role" in message else None
    return calls if isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls) else []


def _is_result(message: object) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "tool"
