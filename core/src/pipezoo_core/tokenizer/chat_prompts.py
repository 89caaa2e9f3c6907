"""Chats to prompts: the model's chat template, and the difference between its special tokens and quoted ones."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from pipezoo_core.errors import InvalidRequestError, UnsupportedTokenizerError
from pipezoo_core.tokenizer.chat import Chat
from pipezoo_core.tokenizer.chat_template import ChatTemplate, ChatTemplateError
from pipezoo_core.tokenizer.quoted_tokens import QuotedTokens
from pipezoo_core.tokenizer.special_tokens import special_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatPrompts"]

_MAX_TEMPLATE_SIZE = 1 << 20
_WRITTEN = ("messages", "tools", "documents")  # whose texts are quoted, and not the developer's own


class ChatPrompts:
    """Renders the chats of one model.

    Args:
        delegate: the model's tokenizer; not changed.

    Raises:
        UnsupportedTokenizerError: the chat template is larger than any honest one.
    """

    def __init__(self, delegate: PreTrainedTokenizerBase) -> None:
        _check_size(delegate.chat_template)
        self._delegate = delegate
        self._templates: dict[str, ChatTemplate] = {}

    def text(self, chat: Chat) -> str:
        """Returns what the template makes of a chat.

        Raises:
            EmptyPromptError: there are no messages.
            InvalidRequestError: the model has no chat template, the chat is not sound or too large, or the template
                refuses it.
        """
        return self._rendered(chat, chat.variables())

    def prompt(self, chat: Chat) -> tuple[str, Callable[[], list[int]] | None]:
        """Returns what the template makes of a chat, and what encodes it where that takes more than its text.

        It does where messages have the text of special tokens, which is no token there. A tokenizer without a backend
        cannot tell.

        Raises:
            What `text` raises; InvalidRequestError also where the template leaves no way to tell.
        """
        variables = chat.variables()
        quoted = self._quoted  # once: another thread that also finds none makes one with other marks
        if quoted is None:
            return self._rendered(chat, variables), None
        try:
            marked = {name: quoted.marked(variables[name]) for name in _WRITTEN}
        except RecursionError as error:
            raise _refusal(error) from error
        if all(marked[name] == variables[name] for name in _WRITTEN):
            return self._rendered(chat, variables), None
        text = self._rendered(chat, {**variables, **marked})
        try:
            return quoted.restored(text), partial(quoted.encode, text)
        except ValueError as error:
            raise _refusal(error) from error

    @cached_property
    def _quoted(self) -> QuotedTokens | None:
        has_backend = getattr(self._delegate, "backend_tokenizer", None) is not None
        return QuotedTokens(self._delegate, special_texts(self._delegate)) if has_backend else None

    def _rendered(self, chat: Chat, variables: Mapping[str, Any]) -> str:
        given = {**self._delegate.special_tokens_map, **variables}
        try:
            if not chat.continue_final_message:
                return self._template(chat).render(given)
            *before, last = variables["messages"]
            mark = f"\ue000{secrets.token_hex(8)}\ue001"
            marked = {**last, "content": f"{last['content']}{mark} "}
            return _up_to(mark, self._template(chat).render({**given, "messages": [*before, marked]}))
        except ChatTemplateError as error:
            raise _refusal(error) from error

    def _template(self, chat: Chat) -> ChatTemplate:
        if self._delegate.chat_template is None:
            raise InvalidRequestError(
                "the model has no chat template", cure="Give the prompt as text, or take the model's chat version."
            )
        try:
            text = self._delegate.get_chat_template(tools=None if chat.tools is None else [*map(dict, chat.tools)])
        except ValueError as error:  # there are several, and none is the default
            raise ChatTemplateError(str(error)) from error
        return self._templates.setdefault(text, ChatTemplate(text))


def _up_to(mark: str, text: str) -> str:
    """Returns a text up to where the mark is at last; behind a message that was trimmed, without its trailing space.

    Raises:
        ChatTemplateError: it has no mark.
    """
    before, found, after = text.rpartition(mark)
    if not found:
        raise ChatTemplateError("it leaves out the end of the last message, which the answer is to continue")
    return before if after.startswith(" ") else before.rstrip()


def _refusal(error: Exception) -> InvalidRequestError:
    return InvalidRequestError(
        "the model's chat template refuses the messages",
        found=error,
        cure="Many templates want the roles user and assistant in turns, the user's first.",
    )


def _check_size(template: object) -> None:
    templates = template.values() if isinstance(template, Mapping) else [template]
    size = max((len(text) for text in templates if isinstance(text, str)), default=0)
    if size > _MAX_TEMPLATE_SIZE:
        raise UnsupportedTokenizerError(
            "the chat template is too large", found=f"{size} characters", allowed=f"at most {_MAX_TEMPLATE_SIZE}"
        )
