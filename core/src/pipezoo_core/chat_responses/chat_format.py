"""One model's way to write chats: what its template is told of tools, and what its answers are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipezoo_core.chat_responses.call_grammar import call_grammar, content_grammar
from pipezoo_core.chat_responses.families import FAMILIES, Family
from pipezoo_core.chat_responses.parser import REASONING_FIELDS, ResponseParser
from pipezoo_core.chat_responses.response import ChatResponse
from pipezoo_core.chat_responses.template import Anchor, ResponseTemplate
from pipezoo_core.chat_responses.told_tools import ToldTools
from pipezoo_core.chat_responses.tools import Tools
from pipezoo_core.errors import InvalidRequestError

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatFormat"]

_MAX_PROMPT = 1 << 16  # characters, of an answer that a prompt has begun
_NO_TOOLS = Tools(given=(), functions=(), choice="none", may_call_several=False)


class ChatFormat:
    """Reads and writes the chats of one model.

    Args:
        chat_template: the text of its chat template, all of it where there are several.
        response_template: of its tokenizer_config.json; None where that has none.
        special_tokens: text -> id, of the tokens that decoding leaves out by default.
        added_tokens: text -> id, of those that grammars know by their ids alone; None for the special ones.

    Attributes:
        family: whose form its calls have.

    Raises:
        UnsupportedTokenizerError: the response_template is not sound.
    """

    def __init__(
        self,
        chat_template: str,
        *,
        response_template: object = None,
        special_tokens: Mapping[str, int] | None = None,
        added_tokens: Mapping[str, int] | None = None,
    ) -> None:
        self.family = _family(chat_template)
        own = self.family.response if response_template is None else response_template
        self._template = ResponseTemplate.from_dict(own)
        self._told = ToldTools(chat_template, self.family)
        self._thinks = self.family.thoughts is not None and self.family.thoughts[0] in chat_template
        special = special_tokens or {}
        self._added_tokens = special if added_tokens is None else added_tokens
        marks = _texts(own)
        marks_are_special = any(token in text for token in special for text in marks)
        self._dropped = Anchor(literals=[*special]) if marks_are_special else None

    @classmethod
    def of(cls, delegate: PreTrainedTokenizerBase, special_texts: Mapping[int, str]) -> ChatFormat:
        """Returns the format of a model's tokenizer.

        Args:
            delegate: the tokenizer.
            special_texts: token -> text, of those that decoding leaves out.

        Raises:
            UnsupportedTokenizerError: its response_template is not sound.
        """
        templates = delegate.chat_template or ""
        text = "\n".join(map(str, templates.values())) if isinstance(templates, Mapping) else str(templates)
        return cls(
            text,
            response_template=getattr(delegate, "response_template", None),
            special_tokens={text: token for token, text in special_texts.items()},
            added_tokens={
                str(added): token for token, added in delegate.added_tokens_decoder.items() if _is_mark(added)
            },
        )

    @property
    def needs_special_tokens(self) -> bool:
        """Whether an answer has to be decoded with its special tokens, because its parts are marked by some."""
        return self._dropped is not None

    @property
    def told(self) -> ToldTools:
        """Tells the model of tools."""
        return self._told

    def parser(
        self, tools: Tools = _NO_TOOLS, *, prompt: str = "", drops_special_tokens: bool = True
    ) -> ResponseParser:
        """Returns a parser of one answer.

        Args:
            tools: of the request.
            prompt: the text that the answer continues, with its special tokens; its end suffices.
            drops_special_tokens: whether those that mark nothing are left out of the content.
        """
        return ResponseParser(
            self._template,
            prompt=prompt[-_MAX_PROMPT:],
            tools=tools.given if tools.are_offered else None,
            may_call_several=tools.may_call_several,
            dropped=self._dropped if drops_special_tokens else None,
        )

    def response(self, text: str, tools: Tools = _NO_TOOLS, *, prompt: str = "") -> ChatResponse:
        """Returns what a whole answer is made of; the arguments are those of `parser`."""
        return self.parser(tools, prompt=prompt).whole(text)

    def grammar(self, tools: Tools, *, prompt: str = "", content_schema: str | None = None) -> str | None:
        """Returns the grammar of an answer, for a request's `SamplingParams.grammar`; None where it may be any text.

        It may not where calls have to be made, where a function is `strict`, or where what is no call follows a schema.
        Without tools, None stands for the schema alone, too: an answer that begins with what is meant to be read.

        Args:
            tools: of the request.
            prompt: the text that the answer continues, with its special tokens; its end suffices.
            content_schema: the JSON schema of an answer that is no call; None for any text.

        Raises:
            InvalidRequestError: the model's calls are no JSON, so no grammar of ours can describe them; or what it
                writes between its thoughts and its answer is unknown.
            InvalidGrammarError: llguidance cannot hold what a schema says.
        """
        open_field = self.parser(prompt=prompt).open_field
        is_thinking = open_field in REASONING_FIELDS
        content_begin = "" if open_field == "content" else self.family.content_begin
        thoughts = self.family.thoughts if self._thinks or is_thinking else None
        if not tools.are_offered and content_schema is not None and open_field != "content":
            if not content_begin and (thoughts is None or not is_thinking):
                raise InvalidRequestError(
                    "the model's answers cannot follow a schema",
                    found=f"a prompt behind which {open_field or 'nothing'} is read",
                    allowed="models whose answers begin with what is meant to be read, or with known thoughts",
                )
            return content_grammar(
                content_schema,
                begin=content_begin,
                thoughts=thoughts,
                is_thinking=is_thinking,
                special_tokens=self._added_tokens,
            )
        is_strict = any(function.is_strict for function in tools.callable)
        if not tools.are_offered or not (tools.have_to_be_called or is_strict or content_schema is not None):
            return None
        if self.family.form is None:
            raise InvalidRequestError(
                f"calls of {self.family.name} models cannot be forced",
                found=f"tool_choice {tools.choice!r}" if tools.have_to_be_called else "a strict function, or a schema",
                allowed='tool_choice "auto" or "none", functions that are not strict, and no schema beside them',
            )
        return call_grammar(
            self.family.form,
            tools.callable,
            has_to_call=tools.have_to_be_called,
            content_schema=content_schema,
            content_begin=content_begin,
            may_call_several=tools.may_call_several,
            thoughts=thoughts,
            is_thinking=is_thinking,
            special_tokens=self._added_tokens,
        )


def _family(chat_template: str) -> Family:
    return next(family for family in FAMILIES if all(mark in chat_template for mark in family.marks))


def _is_mark(added: AddedToken) -> bool:
    """Whether llguidance takes a token for a special one, which no text of a grammar can spell."""
    return added.special or (added.content.startswith("<") and added.content.endswith(">"))


def _texts(response_template: Any) -> list[str]:
    """Returns the texts at which fields open and close, of expressions without what escapes in them."""
    marks: list[str] = []
    for spec in response_template["fields"].values():
        for name in ("open", "close", "open_pattern", "close_pattern"):
            found = spec.get(name, [])
            marks += [text.replace("\\", "") for text in ([found] if isinstance(found, str) else found)]
    return marks
