"""One chat, from its messages to the prompt of an engine and the parsers of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipezoo.serve.errors import FieldError
from pipezoo.serve.model import ServedModel
from pipezoo_core.chat_responses import ResponseParser, Tools
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams

__all__ = ["ChatRequest", "PreparedChat"]

_NUM_LAST = 64  # tokens of a prompt that have the mark at which an answer begins


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedChat:
    """What the engine is asked, and how its answers are read.

    Attributes:
        prompt: the tokens.
        params: complete settings, with the grammar of calls that have to be made.
        prompt_end: the text of the prompt's end.
        tools: what may be called.
        model: whose chat it is.
        drops_special_tokens: whether those that mark nothing are left out of the content.
    """

    prompt: list[int]
    params: SamplingParams
    prompt_end: str
    tools: Tools
    model: ServedModel
    drops_special_tokens: bool

    def parser(self) -> ResponseParser:
        """Returns a parser for one answer."""
        return self.model.chat_format.parser(
            self.tools, prompt=self.prompt_end, drops_special_tokens=self.drops_special_tokens
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """What a client asks.

    Attributes:
        messages: as chat templates know them.
        tools: what may be called.
        params: complete settings.
        chat_template_kwargs: variables of the chat template.
        continue_final_message: whether the answer continues the last message.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Tools
    params: SamplingParams
    chat_template_kwargs: Mapping[str, Any] | None = None
    continue_final_message: bool = False

    async def prepared(self, model: ServedModel) -> PreparedChat:
        """Makes the prompt, in a thread.

        Raises:
            FieldError: calls have to be made, and the answer is to have another form.
            What `TextTokenizer.prompt_tokens` and `ChatFormat.grammar` do.
        """
        return await model.in_thread(lambda: self._prepared(model))

    def _prepared(self, model: ServedModel) -> PreparedChat:
        chat_format, tokenizer = model.chat_format, model.tokenizer
        messages, tools = chat_format.told.chat(self.messages, self.tools)
        request = TextGenerationRequest(
            messages=messages,
            tools=tools,
            chat_template_kwargs=self.chat_template_kwargs,
            continue_final_message=self.continue_final_message,
        )
        prompt = tokenizer.prompt_tokens(request, self.params)
        end = prompt if self.continue_final_message else prompt[-_NUM_LAST:]
        prompt_end = tokenizer.decode(end, skip_special_tokens=False)
        drops_special_tokens = self.params.skip_special_tokens
        params = self._constrained(model, prompt_end)
        if chat_format.needs_special_tokens:
            params = params.updated(skip_special_tokens=False)
        return PreparedChat(
            prompt=prompt,
            params=params,
            prompt_end=prompt_end,
            tools=self.tools,
            model=model,
            drops_special_tokens=drops_special_tokens,
        )

    def _constrained(self, model: ServedModel, prompt_end: str) -> SamplingParams:
        params = self.params
        grammar = model.chat_format.grammar(self.tools, prompt=prompt_end, content_schema=params.json_schema)
        if self.tools.are_offered and params.constraint not in (None, "json_schema"):
            raise FieldError(
                "structured_outputs",
                "an answer that may have tool calls cannot have another form of its own",
                found=params.constraint,
                allowed="a JSON schema, or tool_choice 'none'",
            )
        if (
            params.constraint in ("regex", "choice")
            and model.chat_format.parser(prompt=prompt_end).open_field != "content"
        ):
            raise FieldError(
                "structured_outputs",
                "this model's answers begin with thoughts, and have another form behind them only by a JSON schema",
                found=params.constraint,
                allowed="a JSON schema, or a grammar that has the thoughts in it, too",
            )
        return params if grammar is None else params.updated(json_schema=None, grammar=grammar)
