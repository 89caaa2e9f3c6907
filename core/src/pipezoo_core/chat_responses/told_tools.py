"""Tells a model of tools where its chat template does not: in the system's message, and in the texts of messages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipezoo_core.chat_responses.families import Family
from pipezoo_core.chat_responses.response import ToolCall
from pipezoo_core.chat_responses.single_calls import text_of, with_descriptions, with_single_calls
from pipezoo_core.chat_responses.tools import Tools
from pipezoo_core.errors import InvalidRequestError, shown
from pipezoo_core.request import ChatMessage

__all__ = ["ToldTools"]

_INSTRUCTIONS = """You can call functions to help with the user's request. These are the functions, as JSON schemas:
<tools>
{tools}
</tools>

To call functions, answer with nothing but this, with their names and arguments in it:
{example}
You are then told what they returned. Where no function helps, answer without one."""


class ToldTools:
    """Makes messages of tools, calls and their results, as far as one chat template leaves them out.

    Args:
        chat_template: the text of the template.
        family: how its model writes calls.
    """

    def __init__(self, chat_template: str, family: Family) -> None:
        self._family = family
        self._tells_tools = re.search(r"(?<!['\"])\btools\b", chat_template) is not None
        self._tells_calls = "tool_calls" in chat_template
        self._tells_results = bool(family.marks) or re.search(r"""['"]tool['"]""", chat_template) is not None
        has_system = re.search(r"""['"]system['"]""", chat_template) is not None or "message['role']" in chat_template
        self._has_system = has_system and "System role not supported" not in chat_template

    def chat(
        self, messages: Sequence[ChatMessage], tools: Tools
    ) -> tuple[list[ChatMessage], list[Mapping[str, Any]] | None]:
        """Returns messages and tools for the template.

        Args:
            messages: the chat; those that are not sound are left as they are, for others to refuse.
            tools: of the request.

        Raises:
            InvalidRequestError: a message has a call that is not sound, and the template cannot show calls; or the
                template cannot show tools, and there is no form in which the model could be told to write calls.
        """
        told: list[ChatMessage] = [self._told(message) for message in messages]
        if self._family.shows_single_calls and self._tells_calls:
            told = with_single_calls(told)
        if not tools.are_offered:
            return told, None
        if self._family.tools_in_system:
            functions = [tool["function"] for tool in tools.given]
            return self._with_system(told, "", tools=json.dumps(functions, ensure_ascii=False)), None
        if self._tells_tools:
            return told, with_descriptions(tools.given) if self._family.shows_single_calls else [*tools.given]
        return self._with_system(told, self._instructions(tools)), None

    def _told(self, message: Any) -> ChatMessage:
        if not isinstance(message, Mapping):
            return message
        if message.get("role") == "tool" and not self._tells_results:
            text = f"<tool_response>\n{text_of(message)}\n</tool_response>"
            return {"role": "user", "content": text}
        calls = message.get("tool_calls")
        if not calls or self._tells_calls or self._family.form is None:
            return message
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise InvalidRequestError("tool_calls of a message are not sound", found=shown(calls))
        written = self._family.form.written([_call(call) for call in calls])
        text = text_of(message)
        rest = {name: value for name, value in message.items() if name != "tool_calls"}
        return {**rest, "content": f"{text}\n{written}" if text else written}

    def _instructions(self, tools: Tools) -> str:
        form = self._family.form
        if form is None:
            raise InvalidRequestError(
                "the model cannot be told of tools",
                found=f"a chat template without tools, and calls as {self._family.name} models write them",
                cure="Take a chat template that shows tools, or send none.",
            )
        names = [function.name for function in tools.callable[:1]]
        example = form.written([ToolCall(name, '{"argument": "value"}') for name in names])
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools.given)
        return _INSTRUCTIONS.format(tools=listed, example=example)

    def _with_system(self, messages: list[ChatMessage], text: str, **further: str) -> list[ChatMessage]:
        """Returns messages with a text at the end of the system's, or before the user's where there can be none."""
        first: Mapping[str, Any] = messages[0] if messages and isinstance(messages[0], Mapping) else {}
        if first.get("role") == "system":
            joined = "\n\n".join(filter(None, [text_of(first), text]))
            return [{**first, "content": joined, **further}, *messages[1:]]
        if not self._has_system and first.get("role") == "user":
            return [{**first, "content": f"{text}\n\n{text_of(first)}"}, *messages[1:]]
        return [{"role": "system", "content": text, **further}, *messages]


def _call(call: object) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise InvalidRequestError(
            "a tool call of a message is not sound",
            found=shown(call),
            allowed='a mapping such as {"type": "function", "function": {"name": "f", "arguments": "{}"}}',
        )
    arguments = function.get("arguments", "{}")
    return ToolCall(name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))
