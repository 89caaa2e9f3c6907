"""The tokenizer of a text-generation pipeline, over one of transformers'."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
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
from pipezoo_core.tokenizer.chat import Chat
from pipezoo_core.tokenizer.chat_prompts import ChatPrompts
from pipezoo_core.tokenizer.special_tokens import special_texts
from pipezoo_core.tokenizer.token_length import TokenLength

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextTokenizer"]

Tokens: TypeAlias = "Sequence[int] | NDArray[np.integer[Any]]"

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

    Attributes:
        special_texts: the texts of the tokens that `decode` leaves out.

    Raises:
        UnsupportedTokenizerError: the chat template is larger than any honest one, or an id is, or there are no
            tokens, or the tokenizer fails at a text without characters.
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
        self._chats = ChatPrompts(delegate)
        self.delegate = delegate
        self.max_length = max_length
        self.sampling_params = sampling_params
        self._num_tokens = _checked_num_tokens(delegate.get_vocab())
        self._vocab_size = self._num_tokens if vocab_size is None else vocab_size
        self._eos_token_ids = frozenset(token for token in eos_token_ids if token < self._vocab_size)
        self._grammars = GrammarCompiler(delegate, end_token_ids=self._eos_token_ids)
        self._token_length = TokenLength.of(delegate)
        self._texts: dict[int, str] = {}
        around, self.special_texts = self._try_out()
        self._adds_bos = delegate.bos_token is not None and around[:1] == [delegate.bos_token_id]

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens at which the model itself ends an answer."""
        return self._eos_token_ids

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
        arrival_time = time.monotonic()
        params = self.sampling_params if request.sampling_params is None else request.sampling_params
        self._check_token_ids(params.stop_token_ids, "stop_token_ids")
        self._check_token_ids(params.logit_bias, "logit_bias")
        self._check_token_ids(params.allowed_token_ids or (), "allowed_token_ids")
        matcher = self._grammars.matcher(params)
        return TextContext(
            request_id=request.request_id,
            prompt_tokens=self._prompt_tokens(request, params),
            max_length=self.max_length,
            sampling_params=params,
            end_token_ids=self._eos_token_ids,
            matcher=matcher,
            lora=request.lora,
            bad_words=[spelling for word in params.bad_words for spelling in self._spellings(word)],
            arrival_time=arrival_time,
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
        return self._known(tokens)

    def _known(self, tokens: list[int]) -> NDArray[np.integer[Any]]:
        """Returns tokens, all of which the model knows."""
        if tokens and max(tokens) >= self._vocab_size:
            unknown = next(token for token in tokens if token >= self._vocab_size)
            raise InvalidRequestError(
                "the prompt has a token that the tokenizer knows and the model does not",
                found=f"{self.delegate.convert_ids_to_tokens(unknown)!r}, token {unknown}",
                allowed=f"tokens 0 to {self._vocab_size - 1}",
            )
        return np.asarray(tokens, dtype=np.int64)

    def decode(self, encoded: Tokens, *, skip_special_tokens: bool = True) -> str:
        """Returns the text of tokens, special ones left out, and those that only the model knows.

        Args:
            encoded: the tokens.
            skip_special_tokens: leave special tokens out.

        Raises:
            InvalidRequestError: a token id is not in the vocabulary, or the model's tokenizer fails.
        """
        if self._vocab_size > self._num_tokens:
            encoded = [token for token in encoded if token < self._num_tokens]
        try:
            text = self.delegate.decode(
                list(encoded), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        except BaseException as error:  # of a library, even a panic
            raise_unless_failure(error)
            raise InvalidRequestError(
                "the tokenizer cannot decode the tokens", found=f"{type(error).__name__}: {error}"
            ) from error
        assert isinstance(text, str)
        return text

    def text_of(self, token: int) -> str:
        """Returns the text of one token inside a text: with its leading space, and of a special token its name.

        A part of a character is U+FFFD, and a token that only the model knows is nothing.
        """
        if token not in self._texts:
            self._texts[token] = self.special_texts.get(token) or self._text_behind(token)
        return self._texts[token]

    def _text_behind(self, token: int) -> str:
        """Returns the text of a token behind another one, where it keeps a space that would vanish at the beginning."""
        before = self._encode("a", add_special_tokens=False)
        return self.decode([*before, token]).removeprefix(self.decode(before))

    def apply_chat_template(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """Returns the text that the model's chat template makes of messages.

        As a prompt, it should be given as its tokens, `encode(text, add_special_tokens=False)`. In it the texts of
        special tokens are tokens, wherever they come from; a request's `messages` keep them apart.

        Args:
            messages: the chat so far; `Chat` says what is in it, and what the others are.
            tools: what the model may call.
            chat_template_kwargs: further variables of the template.
            add_generation_prompt: whether the text ends where the answer begins.
            continue_final_message: whether it ends within the last message instead.

        Raises:
            EmptyPromptError: there are no messages.
            InvalidRequestError: the model has no chat template, a message is not sound, the chat is too large, or the
                template refuses it; its reason is chained.
        """
        chat = Chat(
            messages=messages,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        return self._chats.text(chat)

    def _prompt_tokens(self, request: TextGenerationRequest, params: SamplingParams) -> list[int]:
        if params.truncate_prompt_tokens is None:
            return self._whole_prompt(request, self.max_length).tolist()
        tokens: list[int] = self._whole_prompt(request, max_length=None).tolist()
        room = self.max_length - max(1, params.max_new_tokens or 1)
        most = max(1, room) if params.truncate_prompt_tokens == -1 else params.truncate_prompt_tokens
        if len(tokens) <= most:
            return tokens
        begins_with_bos = most > 1 and tokens[0] == self.delegate.bos_token_id
        return [*tokens[:1], *tokens[len(tokens) - most + 1 :]] if begins_with_bos else tokens[-most:]

    def _whole_prompt(self, request: TextGenerationRequest, max_length: int | None) -> NDArray[np.integer[Any]]:
        """Returns the request's tokens; where there cannot be as few as `max_length`, an error before they are made."""
        if (request.prompt is None) == (request.messages is None):
            raise InvalidRequestError(
                "a request has exactly one of prompt and messages",
                found="neither" if request.prompt is None else "both",
            )
        if request.messages is not None:
            return self._chat_tokens(request, max_length)
        if request.tools or request.chat_template_kwargs or request.continue_final_message:
            raise InvalidRequestError(
                "a prompt that is no chat has no tools, chat_template_kwargs or continue_final_message",
                cure="Give messages.",
            )
        assert request.prompt is not None
        if isinstance(request.prompt, str) and not request.prompt:
            # Special tokens alone would make a prompt of it.
            raise EmptyPromptError("the prompt is empty", cure="Give at least one character of text.")
        return self._encoded(request.prompt, max_length)

    def _chat_tokens(self, request: TextGenerationRequest, max_length: int | None) -> NDArray[np.integer[Any]]:
        assert request.messages is not None
        chat = Chat(
            messages=request.messages,
            tools=request.tools,
            chat_template_kwargs=request.chat_template_kwargs,
            continue_final_message=request.continue_final_message,
        )
        text, encode = self._chats.prompt(chat)
        if encode is None:
            return self._encoded(text, max_length, add_special_tokens=False)
        self._check_length(text, max_length)
        _check_unicode(text)
        return self._known(self._guarded(encode))

    def _encoded(
        self, prompt: str | Tokens, max_length: int | None, add_special_tokens: bool = True
    ) -> NDArray[np.integer[Any]]:
        self._check_length(prompt, max_length)
        return self.encode(prompt, add_special_tokens)

    def _check_length(self, prompt: str | Tokens, max_length: int | None) -> None:
        """Refuses a prompt that has more tokens than a context holds, however it is cut into them."""
        fewest = len(prompt)
        if isinstance(prompt, str):
            fewest = 0 if self._token_length is None else self._token_length.fewest_tokens(prompt)
        if max_length is not None and fewest > max_length:
            raise PromptTooLongError(
                "the prompt is longer than the model's context",
                found=f"at least {fewest} tokens",
                allowed=f"at most {max_length - 1}, which leaves room for one new token",
                cure="Shorten the prompt, or raise max_length if the model allows it.",
            )

    def _spellings(self, word: str) -> list[list[int]]:
        """Returns the tokens of a word by itself, after a space, and at the beginning of a line."""
        before = self._encode("\n", add_special_tokens=False)
        spelled = [self._encode(text, add_special_tokens=False) for text in (word, f" {word}", f"\n{word}")]
        if spelled[-1][: len(before)] == before:
            del spelled[-1][: len(before)]
        return [list(tokens) for tokens in dict.fromkeys(map(tuple, spelled)) if tokens]

    def _encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        # A tokenizer.json may bring padding and truncation from its training, and `verbose` logs what is too long
        # for it: neither is the tokenizer's business here.
        encode = partial(self.delegate.encode, padding=False, truncation=False, verbose=False)
        return self._guarded(partial(encode, text, add_special_tokens=add_special_tokens))

    def _guarded(self, encode: Callable[[], list[int]]) -> list[int]:
        try:
            return encode()
        except BaseException as error:  # of a library, even a panic
            raise_unless_failure(error)
            raise InvalidRequestError(
                "the model's tokenizer fails at the text",
                found=f"{type(error).__name__}: {error}",
                cure="Shorten the text or change it; if all texts fail, take another tokenizer.json.",
            ) from error

    def _try_out(self) -> tuple[list[int], Mapping[int, str]]:
        """Returns the tokens around an empty text and the special texts, at which a sound tokenizer does not fail."""
        try:
            return self._encode(""), special_texts(self.delegate)
        except Exception as error:
            raise UnsupportedTokenizerError(
                "the model's tokenizer does not work",
                found=error.found if isinstance(error, InvalidRequestError) else f"{type(error).__name__}: {error}",
                cure="Take another tokenizer.json.",
            ) from error

    def _check_token_ids(self, token_ids: Iterable[object], name: str) -> None:
        for token_id in token_ids:
            if not isinstance(token_id, int | np.integer) or not 0 <= token_id < self._vocab_size:
                raise InvalidRequestError(
                    f"a token id of {name} is not in the vocabulary",
                    found=shown(token_id),
                    allowed=f"0 to {self._vocab_size - 1}",
                )


def _checked_num_tokens(vocabulary: Mapping[str, int]) -> int:
    """Returns the number of ids up to the greatest, which may have gaps."""
    greatest = max(vocabulary.values(), default=-1)
    if greatest < 0:
        raise UnsupportedTokenizerError("the tokenizer has no tokens", cure="Take another tokenizer.json.")
    if greatest >= _MAX_NUM_TOKENS:  # the library walks over all ids up to it, used or not
        raise UnsupportedTokenizerError(
            "the tokenizer has an id above that of any vocabulary",
            found=greatest,
            allowed=f"at most {_MAX_NUM_TOKENS - 1}",
        )
    return greatest + 1


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
