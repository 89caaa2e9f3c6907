"""What `/v1/chat/completions` takes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pipezoo.serve.errors import FieldError
from pipezoo.serve.fields.body import Listed
from pipezoo.serve.fields.message import MAX_MESSAGES, Message
from pipezoo.serve.fields.sampling import SamplingFields, checked_params
from pipezoo.serve.fields.stream_options import StreamOptions, check_stream_options
from pipezoo.serve.fields.tools import FunctionTool, NamedTool, read_tools
from pipezoo_core.chat_responses import MAX_TOOLS, Tools
from pipezoo_core.sampling_params import SamplingParams

__all__ = ["ChatBody"]


class ChatBody(SamplingFields):
    """A chat to answer."""

    model: str | None = Field(default=None, description="The served model, or an adapter; the model if not given.")
    messages: Listed[Message] = Field(max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, description="Most tokens to generate.")
    max_tokens: int | None = Field(default=None, description="The older name of `max_completion_tokens`.")
    logprobs: bool | None = Field(default=None, description="Whether to give the tokens' log probabilities.")
    top_logprobs: int | None = Field(default=None, description="Most likely tokens to list for each token.")
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="Variables of the chat template.")
    continue_final_message: bool = Field(default=False, description="Whether the answer continues the last message.")
    tools: Listed[FunctionTool] | None = Field(
        default=None, max_length=MAX_TOOLS, description="What the model may call."
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        default=None, description="Whether it has to, or which function; `auto` if not given."
    )
    parallel_tool_calls: bool = Field(default=True, description="Whether an answer may have several calls.")
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def num_logprobs(self) -> int | None:
        """How many of the most likely tokens to list for each token; None where no log probabilities are wanted."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def tools_read(self) -> Tools:
        """Returns what may be called.

        Raises:
            FieldError: the tools are not sound, too many or too large, or the choice is none of them.
        """
        tools = [tool.plain() for tool in self.tools or ()]
        choice = self.tool_choice.model_dump() if isinstance(self.tool_choice, NamedTool) else self.tool_choice
        return read_tools(tools, choice, may_call_several=self.parallel_tool_calls)

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """Returns how to sample.

        Raises:
            FieldError: a field is not valid, or excludes another one.
        """
        check_stream_options(self.stream_options, stream=self.stream)
        settings = self.settings()
        given = self.given()
        limits = [given[name] for name in ("max_completion_tokens", "max_tokens") if name in given]
        if len(set(limits)) > 1:
            raise FieldError("max_tokens", "'max_tokens' and 'max_completion_tokens' are not the same", found=limits)
        if limits:
            settings["max_new_tokens"] = limits[0]
        if self.top_logprobs is not None and not self.logprobs:
            raise FieldError("top_logprobs", "'top_logprobs' goes with 'logprobs': true", found=self.top_logprobs)
        counts = [each for each in (self.num_logprobs, self.prompt_logprobs) if each is not None]
        if counts:
            settings["log_probabilities"] = max(counts) if min(counts) >= 0 else min(counts)
            settings["echo"] = self.prompt_logprobs is not None
        limit = "max_completion_tokens" if "max_completion_tokens" in given else "max_tokens"
        return checked_params(
            defaults, settings, {"max_new_tokens": limit, **self.names({"top_logprobs": self.num_logprobs})}
        )
