"""A chat as its caller gives it, and the variables that a chat template is given for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipezoo_core.errors import InvalidRequestError, shown
from pipezoo_core.request import ChatMessage
from pipezoo_core.tokenizer.chat_messages import check_messages

__all__ = ["Chat"]

_OURS = ("messages", "tools", "add_generation_prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """Messages, and how a template makes a prompt of them.

    Attributes:
        messages: `{"role": …, "content": …}` each. The content is text or a list of parts that are text, which become
            lines; an assistant's may be None.
        tools: what the model may call, a JSON schema each.
        chat_template_kwargs: further variables of the model's template, such as `enable_thinking` or `documents`.
        add_generation_prompt: whether the prompt ends where the answer begins.
        continue_final_message: whether the prompt ends within the last message instead, which the answer continues.
    """

    messages: Sequence[ChatMessage]
    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    def variables(self) -> dict[str, Any]:
        """Returns what the template is given, all of it plain values.

        Raises:
            EmptyPromptError: there are no messages.
            InvalidRequestError: a message, the tools or the variables are not sound, or there is too much of them.
        """
        further = self.chat_template_kwargs or {}
        check_messages(self.messages, self.tools, further)
        if self.tools is not None and not all(isinstance(tool, Mapping) for tool in self.tools):
            raise InvalidRequestError("a tool is not sound", found=shown(self.tools), allowed="a JSON schema")
        if any(not isinstance(name, str) or name in _OURS for name in further):
            raise InvalidRequestError(
                "chat_template_kwargs are not valid",
                found=shown(further),
                allowed=f"names other than {', '.join(_OURS)}",
            )
        return {
            "documents": None,
            **further,
            "messages": [_plain(message) for message in self.messages],
            "tools": None if self.tools is None else [dict(tool) for tool in self.tools],
            "add_generation_prompt": self.add_generation_prompt and not self.continue_final_message,
        }


def _plain(message: ChatMessage) -> dict[str, Any]:
    """Returns a message as templates expect it: its content text, the arguments of its tool calls a mapping."""
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "\n".join(part["text"] for part in content)
    plain = {**message, "content": "" if content is None else content}
    if isinstance(calls := message.get("tool_calls"), Sequence):
        plain["tool_calls"] = [_with_arguments(call) for call in calls]
    return plain


def _with_arguments(call: object) -> object:
    """Returns a tool call with its arguments as a mapping; OpenAI's clients give them as the text of one."""
    if not isinstance(call, Mapping) or not isinstance(function := call.get("function"), Mapping):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    if not isinstance(arguments, Mapping):
        return call
    return {**call, "function": {**function, "arguments": arguments}}
