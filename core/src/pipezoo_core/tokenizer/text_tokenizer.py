"""The tokenizer of a text-generation pipeline, over one of transformers'."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipezoo_core.context import TextContext
from pipezoo_core.errors import (
    EmptyPromptError,
    InvalidRequestError,
    PromptTooLongError,
    UnsupportedTokenizerError,
    shown,
)
from pipezoo_core.panics import raise_unless_failure
from pipezoo_core.request import ChatMessage, TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.structured_output import GrammarCompiler
from pipezoo_core.tokenizer.chat_messages import check_messages
from pipezoo_core.tokenizer.chat_template import ChatTemplate, ChatTemplateError
from pipezoo_core.tokenizer.token_length import TokenLength

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextTokenizer"]

Tokens: TypeAlias = "Sequence[int] | NDArray[np.integer[Any]]"

_MAX_TEMPLATE_SIZE = 1 << 20
_MAX_NUM_TOKENS = 1 << 24


class TextTokenizer:
    """Turns requests into contexts, and text into tokens and back. A `PipelineTokenizer`.

    Args:
        delegate: the model's own tokenizer; not changed.
        max_length: most tokens of a request, prompt and answer together.
        sampling_params: settings of requests that bring none.
        eos_token_ids: the tokens at which the model itself ends an answer.
        vocab_size: tokens that the model knows; None for those of the tokenizer. They may be fewer, or more: a head is
            padded, and what it is padded with can be generated and has no text.

    Raises:
        UnsupportedTokenizerError: the chat template is larger than any honest one, or an id is, or the tokenizer fails
            at a text without characters.
    """

    def __init__(
        self,
        delegate: PreTrainedTokenizerBase,
        *,
        max_length: int,
        sampling_params: SamplingParams,
        eos_token_ids: Collection[int],
        vocab_size: int | None = None,
    ) -> None:
        _check_template_size(delegate.chat_template)
        self.delegate = delegate
        self.max_length = max_length
        self.sampling_params = sampling_params
        self._num_tokens = max(delegate.get_vocab().values()) + 1  # ids may have gaps, so not their number
        if self._num_tokens > _MAX_NUM_TOKENS:  # the library walks over all ids up to the greatest, used or not
            raise UnsupportedTokenizerError(
                "the tokenizer has an id above that of any vocabulary",
                found=self._num_tokens - 1,
                allowed=f"at most {_MAX_NUM_TOKENS - 1}",
            )
        self._vocab_size = self._num_tokens if vocab_size is None else vocab_size
        self._eos_token_ids = frozenset(token for token in eos_token_ids if token < self._vocab_size)
        self._grammars = GrammarCompiler(delegate, end_token_ids=self._eos_token_ids)
        self._token_length = TokenLength.of(delegate)
        around = self._try_out()
        self._adds_bos = delegate.bos_token is not None and around[:1] == [delegate.bos_token_id]

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens at which the model itself ends an answer."""
        return self._eos_token_ids

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        try:
            return ChatTemplate(self.delegate.get_chat_template())
        except ValueError as error:  # there are several, and none is the default
            raise ChatTemplateError(str(error)) from error

    @cached_property
    def special_texts(self) -> Mapping[int, str]:
        """The texts of the tokens that `decode` leaves out."""
        added = self.delegate.added_tokens_decoder
        ids = {*self.delegate.all_special_ids, *(token for token, added_token in added.items() if added_token.special)}
        ids.discard(None)  # of a special token that the vocabulary lacks
        return {token: str(self.delegate.convert_ids_to_tokens(token)) for token in ids}

    def new_context(self, request: TextGenerationRequest) -> TextContext:
        """Returns a context that holds the request's prompt as tokens, and its settings.

        Raises:
            EmptyPromptError: the prompt is empty.
            PromptTooLongError: the prompt leaves no room for one new token.
            InvalidRequestError: there is not exactly one of prompt and messages, a token id is not in the
                vocabulary, or the chat template refuses the messages.
            InvalidGrammarError: the request's grammar is malformed, cannot be satisfied, or cannot be expressed.
            MissingDependencyError: it has a grammar, and llguidance is not installed.
            UnsupportedTokenizerError: it has a grammar, and llguidance cannot read the model's tokenizer.
        """
        params = self.sampling_params if request.sampling_params is None else request.sampling_params
        self._check_token_ids(params.stop_token_ids, "stop_token_ids")
        self._check_token_ids(params.logit_bias, "logit_bias")
        matcher = self._grammars.matcher(params)
        return TextContext(
            request_id=request.request_id,
            prompt_tokens=self._prompt_tokens(request).tolist(),
            max_length=self.max_length,
            sampling_params=params,
            end_token_ids=self._eos_token_ids,
            matcher=matcher,
            lora=request.lora,
        )

    def encode(self, prompt: str | Tokens, add_special_tokens: bool = True) -> NDArray[np.integer[Any]]:
        """Returns the tokens of a text, which never begins with more BOS tokens than the text itself or one.

        Args:
            prompt: text; or token ids, which come back as they are.
            add_special_tokens: add those that the model expects around a text. Not for a rendered chat: its template
                wrote them.

        Raises:
            InvalidRequestError: a token id is not in the vocabulary, the text has a token that the model does not
                know or is no Unicode text, or the model's tokenizer fails at it.
        """
        if not isinstance(prompt, str):
            self._check_token_ids(prompt, "prompt")
            return np.asarray(prompt, dtype=np.int64)
        _check_unicode(prompt)
        tokens = self._encode(prompt, add_special_tokens)
        if add_special_tokens and self._adds_bos and tokens[1:2] == tokens[:1]:
            del tokens[0]  # the text brings its own
        if tokens and max(tokens) >= self._vocab_size:
            unknown = next(token for token in tokens if token >= self._vocab_size)
            raise InvalidRequestError(
                "the prompt has a token that the tokenizer knows and the model does not",
                found=f"{self.delegate.convert_ids_to_tokens(unknown)!r}, token {unknown}",
                allowed=f"tokens 0 to {self._vocab_size - 1}",
            )
        return np.asarray(tokens, dtype=np.int64)

    def decode(self, encoded: Tokens) -> str:
        """Returns the text of tokens, special ones left out, and those that only the model knows.

        Raises:
            InvalidRequestError: a token id is not in the vocabulary, or the model's tokenizer fails.
        """
        if self._vocab_size > self._num_tokens:
            encoded = [token for token in encoded if token < self._num_tokens]
        try:
            text = self.delegate.decode(list(encoded), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        except BaseException as error:  # of a library, even a panic
            raise_unless_failure(error)
            raise InvalidRequestError(
                "the tokenizer cannot decode the tokens", found=f"{type(error).__name__}: {error}"
            ) from error
        assert isinstance(text, str)
        return text

    def chat(self, messages: Sequence[ChatMessage]) -> str:
        """Returns the text that the model's chat template makes of messages, up to where the answer begins.

        Raises:
            EmptyPromptError: there are no messages.
            InvalidRequestError: the model has no chat template, a message lacks its role or text, the chat is too
                large, or the template refuses the messages; its reason is chained.
        """
        if self.delegate.chat_template is None:
            raise InvalidRequestError(
                "the model has no chat template", cure="Give the prompt as text, or take the model's chat version."
            )
        check_messages(messages)
        conversation = [dict(message) for message in messages]
        given = {"messages": conversation, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            return self._chat_template.render({**self.delegate.special_tokens_map, **given})
        except ChatTemplateError as error:
            raise InvalidRequestError(
                "the model's chat template refuses the messages",
                found=error,
                cure="Many templates want the roles user and assistant in turns, the user's first.",
            ) from error

    def _prompt_tokens(self, request: TextGenerationRequest) -> NDArray[np.integer[Any]]:
        if (request.prompt is None) == (request.messages is None):
            raise InvalidRequestError(
                "a request has exactly one of prompt and messages",
                found="neither" if request.prompt is None else "both",
            )
        if request.messages is not None:
            return self._encoded(self.chat(request.messages), add_special_tokens=False)
        assert request.prompt is not None
        if isinstance(request.prompt, str) and not request.prompt:
            # Special tokens alone would make a prompt of it.
            raise EmptyPromptError("the prompt is empty", cure="Give at least one character of text.")
        return self._encoded(request.prompt)

    def _encoded(self, prompt: str | Tokens, add_special_tokens: bool = True) -> NDArray[np.integer[Any]]:
        """Returns the tokens of a prompt, unless it has more than a context holds, however they are cut."""
        fewest = len(prompt)
        if isinstance(prompt, str):
            fewest = 0 if self._token_length is None else self._token_length.fewest_tokens(prompt)
        if fewest > self.max_length:
            raise PromptTooLongError(
                "the prompt is longer than the model's context",
                found=f"at least {fewest} tokens",
                allowed=f"at most {self.max_length - 1}, which leaves room for one new token",
                cure="Shorten the prompt, or raise max_length if the model allows it.",
            )
        return self.encode(prompt, add_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        # A tokenizer.json may bring padding and truncation from its training, and `verbose` logs what is too long
        # for it: neither is the tokenizer's business here.
        try:
            tokens: list[int] = self.delegate.encode(
                text, add_special_tokens=add_special_tokens, padding=False, truncation=False, verbose=False
            )
        except BaseException as error:  # of a library, even a panic
            raise_unless_failure(error)
            raise InvalidRequestError(
                "the model's tokenizer fails at the text",
                found=f"{type(error).__name__}: {error}",
                cure="Shorten the text or change it; if all texts fail, take another tokenizer.json.",
            ) from error
        return tokens

    def _try_out(self) -> list[int]:
        """Returns the tokens around an empty text, at which a sound tokenizer does not fail."""
        try:
            return self._encode("")
        except InvalidRequestError as error:
            raise UnsupportedTokenizerError(
                "the model's tokenizer does not work", found=error.found, cure="Take another tokenizer.json."
            ) from error

    def _check_token_ids(self, token_ids: Iterable[object], name: str) -> None:
        for token_id in token_ids:
            if not isinstance(token_id, int | np.integer) or not 0 <= token_id < self._vocab_size:
                raise InvalidRequestError(
                    f"a token id of {name} is not in the vocabulary",
                    found=shown(token_id),
                    allowed=f"0 to {self._vocab_size - 1}",
                )


def _check_template_size(template: object) -> None:
    templates = template.values() if isinstance(template, Mapping) else [template]
    size = max((len(text) for text in templates if isinstance(text, str)), default=0)
    if size > _MAX_TEMPLATE_SIZE:
        raise UnsupportedTokenizerError(
            "the chat template is too large", found=f"{size} characters", allowed=f"at most {_MAX_TEMPLATE_SIZE}"
        )


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            "the text is not Unicode text",
            found=f"half of a surrogate pair, {text[error.start]!a}, at character {error.start}",
            allowed="text that UTF-8 can encode",
            cure='Decode it with errors="replace" where it comes from.',
        ) from error
