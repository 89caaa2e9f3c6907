"""What `/v1/responses` takes."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipezoo.serve.errors import FieldError
from pipezoo.serve.fields.body import Body, Listed, check_size
from pipezoo.serve.fields.message import MAX_MESSAGES
from pipezoo.serve.fields.response_items import InputItem, messages_of
from pipezoo.serve.fields.sampling import ANY_OBJECT, checked_params
from pipezoo.serve.fields.tools import read_tools
from pipezoo_core.chat_responses import MAX_TOOLS, Tools
from pipezoo_core.sampling_params import SamplingParams

__all__ = ["ResponsesBody"]

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "cache_salt")
_MAX_METADATA = 16  # entries, as OpenAI has it


def _few_entries(value: object) -> object:
    return check_size(value, _MAX_METADATA)


class ResponseTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def plain(self) -> dict[str, Any]:
        """Returns it as chat templates know it."""
        return {"type": "function", "function": {name: each for name, each in self.given().items() if name != "type"}}


class ResponseToolChoice(Body):
    """The function that has to be called."""

    type: Literal["function"]
    name: str


class ResponseTextFormat(Body):
    """What the answer's text looks like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = Field(default=None, description="An answer follows the schema whatever is said here.")


class ResponseText(Body):
    """How the answer is written."""

    format: ResponseTextFormat | None = None


class ResponsesBody(Body):
    """An answer to a conversation. Nothing of it is stored, so each request has all of its conversation."""

    model: str | None = Field(default=None, description="The served model, or an adapter; the model if not given.")
    input: str | Annotated[Listed[InputItem], Field(max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    cache_salt: str | None = Field(default=None, description="Prompts are shared with requests of the same salt alone.")
    tools: Listed[ResponseTool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: bool = True
    text: ResponseText | None = None
    metadata: Annotated[dict[str, str] | None, BeforeValidator(_few_entries)] = Field(
        default=None, description="Comes back with the response."
    )
    stream: bool = False
    store: bool | None = Field(default=None, description="Only false: nothing is stored.")
    previous_response_id: str | None = Field(default=None, description="Refused: nothing is stored.")
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None

    def check_is_stateless(self) -> None:
        """Raises FieldError where the client asks for something that has to be stored."""
        cure = "Send the whole conversation as `input`, with `store` false."
        if self.previous_response_id is not None:
            raise FieldError("previous_response_id", "responses are not stored here", found="an id", cure=cure)
        if self.store:
            raise FieldError("store", "responses are not stored here", found=True, allowed=False, cure=cure)

    def messages(self) -> list[dict[str, Any]]:
        """Returns the conversation as chat templates know it."""
        items = self.input
        chat = [{"role": "user", "content": items}] if isinstance(items, str) else messages_of(items)
        if self.instructions is None:
            return chat
        if chat and chat[0]["role"] == "system":
            return [{"role": "system", "content": f"{self.instructions}\n\n{chat[0]['content']}"}, *chat[1:]]
        return [{"role": "system", "content": self.instructions}, *chat]

    def tools_read(self) -> Tools:
        """Returns what may be called. Raises what `read_tools` does."""
        choice: object = self.tool_choice
        if isinstance(choice, ResponseToolChoice):
            choice = {"type": "function", "function": {"name": choice.name}}
        tools = [tool.plain() for tool in self.tools or ()]
        return read_tools(tools, choice, may_call_several=self.parallel_tool_calls)

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """Returns how to sample.

        Raises:
            FieldError: a field is not valid.
        """
        settings = {name: value for name, value in self.given().items() if name in _SAMPLING}
        if self.max_output_tokens is not None:
            settings["max_new_tokens"] = self.max_output_tokens
        form = None if self.text is None else self.text.format
        if form is not None and form.type != "json_schema" and form.schema_ is not None:
            raise FieldError(
                "text.format.schema",
                "'schema' goes with the type 'json_schema', and with no other",
                found=f"the type {form.type!r}",
            )
        if form is not None and form.type == "json_object":
            settings["json_schema"] = ANY_OBJECT
        elif form is not None and form.type == "json_schema":
            if form.schema_ is None:
                raise FieldError("text.format.schema", "the schema is not given")
            settings["json_schema"] = json.dumps(form.schema_)
        return checked_params(
            defaults, settings, {"max_new_tokens": "max_output_tokens", "json_schema": "text.format.schema"}
        )
