"""What `/tokenize` and `/detokenize` take."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pipezoo.serve.errors import FieldError
from pipezoo.serve.fields.body import Body, Listed
from pipezoo.serve.fields.message import MAX_MESSAGES, Message
from pipezoo.serve.fields.tools import FunctionTool, read_tools
from pipezoo_core.chat_responses import MAX_TOOLS, Tools

__all__ = ["DetokenizeBody", "TokenizeBody"]


class TokenizeBody(Body):
    """A text, or a chat, to make tokens of."""

    model: str | None = None
    prompt: str | None = None
    messages: Listed[Message] | None = Field(default=None, max_length=MAX_MESSAGES)
    add_special_tokens: bool = Field(default=True, description="Of a text, whether those around it are added.")
    add_generation_prompt: bool = Field(default=True, description="Of a chat, whether it ends where an answer begins.")
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Listed[FunctionTool] | None = Field(
        default=None, max_length=MAX_TOOLS, description="Of a chat, what the model may call."
    )
    return_token_strs: bool = Field(default=False, description="Whether to give each token's text, too.")

    def check(self) -> None:
        """Checks that there is one thing to make tokens of.

        Raises:
            FieldError: there are both a text and a chat, or none, or fields of the other.
        """
        if (self.prompt is None) == (self.messages is None):
            raise FieldError("prompt", "there is not exactly one of 'prompt' and 'messages'")
        of_chats = {"add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"}
        others = ({"add_special_tokens"} if self.prompt is None else of_chats) & self.model_fields_set
        if others:
            name = min(others)
            raise FieldError(name, f"{name!r} does not go with {'messages' if self.prompt is None else 'prompt'!r}")

    def tools_read(self) -> Tools:
        """Returns what may be called. Raises what `read_tools` does."""
        return read_tools([tool.plain() for tool in self.tools or ()], None, may_call_several=True)


class DetokenizeBody(Body):
    """Tokens to make a text of."""

    model: str | None = None
    tokens: Listed[int]
