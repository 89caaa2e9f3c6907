"""The tokenizer of a text-generation pipeline: requests to contexts, with their prompts as tokens."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipezoo_core.context import TextContext
from pipezoo_core.errors import EmptyPromptError, InvalidRequestError, PromptTooLongError
from pipezoo_core.request import ChatMessage, TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.structured_output import GrammarCompiler
from pipezoo_core.tokenizer.chat import Chat
from pipezoo_core.tokenizer.chat_prompts import ChatPrompts
from pipezoo_core.tokenizer.text_codec import TextCodec, Tokens
from pipezoo_core.tokenizer.token_length import TokenLength

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextTokenizer"]


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
        self._codec = TextCodec(delegate, vocab_size=vocab_size)
        self._eos_token_ids = frozenset(token for token in eos_token_ids if token < self._codec.vocab_size)
        self._grammars = GrammarCompiler(delegate, end_token_ids=self._eos_token_ids)
        self._token_length = TokenLength.of(delegate)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens at which the model itself ends an answer."""
        return self._eos_token_ids

    @property
    def special_texts(self) -> Mapping[int, str]:
        """The texts of the tokens that `decode` leaves out."""
        return self._codec.special_texts

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
        self._codec.check_token_ids(params.stop_token_ids, "stop_token_ids")
        self._codec.check_token_ids(params.logit_bias, "logit_bias")
        self._codec.check_token_ids(params.allowed_token_ids or (), "allowed_token_ids")
        matcher = self._grammars.matcher(params)
        return TextContext(
            request_id=request.request_id,
            prompt_tokens=self.prompt_tokens(request, params),
            max_length=self.max_length,
            sampling_params=params,
            end_token_ids=self._eos_token_ids,
            matcher=matcher,
            lora=request.lora,
            bad_words=[spelling for word in params.bad_words for spelling in self._codec.spellings(word)],
            arrival_time=arrival_time,
        )

    def prompt_tokens(self, request: TextGenerationRequest, params: SamplingParams) -> list[int]:
        """Returns the tokens of a request's prompt or chat, cut as its settings say.

        A request with these tokens in place of the text is answered like it.

        Raises:
            EmptyPromptError: the prompt is empty.
            PromptTooLongError: it cannot have as few tokens as the model's context.
            InvalidRequestError: as of `new_context`.
        """
        if params.truncate_prompt_tokens is None:
            return self._whole_prompt(request, self.max_length).tolist()
        tokens: list[int] = self._whole_prompt(request, max_length=None).tolist()
        room = self.max_length - max(1, params.max_new_tokens or 1)
        most = max(1, room) if params.truncate_prompt_tokens == -1 else params.truncate_prompt_tokens
        if len(tokens) <= most:
            return tokens
        begins_with_bos = most > 1 and tokens[0] == self.delegate.bos_token_id
        return [*tokens[:1], *tokens[len(tokens) - most + 1 :]] if begins_with_bos else tokens[-most:]

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
        return self._codec.encode(prompt, add_special_tokens)

    def decode(self, encoded: Tokens, *, skip_special_tokens: bool = True) -> str:
        """Returns the text of tokens, special ones left out, and those that only the model knows.

        Args:
            encoded: the tokens.
            skip_special_tokens: leave special tokens out.

        Raises:
            InvalidRequestError: a token id is not in the vocabulary, or the model's tokenizer fails.
        """
        return self._codec.decode(encoded, skip_special_tokens=skip_special_tokens)

    def text_of(self, token: int) -> str:
        """Returns the text of one token inside a text: with its leading space, and of a special token its name.

        A part of a character is U+FFFD, and a token that only the model knows is nothing.
        """
        return self._codec.text_of(token)

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

    def chat_tokens(self, chat: Chat) -> NDArray[np.integer[Any]]:
        """Returns the tokens of a chat, as those of a request with it, be they more than the model takes.

        Raises:
            PipezooError: what `apply_chat_template` raises.
        """
        return self._chat_tokens(chat, max_length=None)

    def _whole_prompt(self, request: TextGenerationRequest, max_length: int | None) -> NDArray[np.integer[Any]]:
        """Returns the request's tokens; where there cannot be as few as `max_length`, an error before they are made."""
        if (request.prompt is None) == (request.messages is None):
            raise InvalidRequestError(
                "a request has exactly one of prompt and messages",
                found="neither" if request.prompt is None else "both",
            )
        if request.messages is not None:
            chat = Chat(
                messages=request.messages,
                tools=request.tools,
                chat_template_kwargs=request.chat_template_kwargs,
                continue_final_message=request.continue_final_message,
            )
            return self._chat_tokens(chat, max_length)
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

    def _chat_tokens(self, chat: Chat, max_length: int | None) -> NDArray[np.integer[Any]]:
        text, encode = self._chats.prompt(chat)
        if encode is None:
            return self._encoded(text, max_length, add_special_tokens=False)
        self._check_length(text, max_length)
        return self._codec.encoded(text, encode)

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
                "the prompt is too long for the model's context",
                found=f"at least {fewest} tokens",
                allowed=f"at most {max_length - 1}, which leaves room for one new token",
                cure="Shorten the prompt, or raise max_length if the model allows it.",
            )
