"""How a model writes its calls: for chats whose template cannot, and for answers that have to be calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipezoo_core.chat_responses.response import ToolCall

__all__ = ["CallForm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    r"""Texts around the names and arguments of calls.

    Qwen's two calls, with `call='<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>'` and
    `between="\n"`:

        <tool_call>
        {"name": "f", "arguments": {"a": 1}}
        </tool_call>
        <tool_call>
        {"name": "g", "arguments": {}}
        </tool_call>

    Attributes:
        begin: before the first call.
        call: one of them, with `NAME` and `ARGUMENTS` in it, in this order.
        between: two of them; None where an answer has one call at most.
        end: after the last one.
        sign: a regular expression of text with which a call has begun, of all ways to begin one that are read; "" where
            that is the first line before a call's name.
    """

    begin: str = ""
    call: str
    between: str | None = None
    end: str = ""
    sign: str = ""

    @property
    def around(self) -> tuple[str, str, str]:
        """The texts before the name, between it and the arguments, and behind these."""
        before, _, rest = self.call.partition("NAME")
        middle, _, behind = rest.partition("ARGUMENTS")
        return before, middle, behind

    def written(self, calls: Sequence[ToolCall]) -> str:
        """Returns the text of calls, at least one."""
        before, middle, behind = self.around
        texts = [f"{before}{call.name}{middle}{call.arguments}{behind}" for call in calls]
        return self.begin + ("\n" if self.between is None else self.between).join(texts) + self.end
