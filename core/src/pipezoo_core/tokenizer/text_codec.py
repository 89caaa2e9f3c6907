"""Text to tokens and back, by a tokenizer of transformers that may fail in any way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipezoo_core.errors import InvalidRequestError, UnsupportedTokenizerError, shown
from pipezoo_core.panics import raise_unless_failure
from pipezoo_core.tokenizer.special_tokens import special_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextCodec", "Tokens"]

Tokens: TypeAlias = "Sequence[int] | NDArray[np.integer[Any]]"

_MAX_NUM_TOKENS = 1 << 24


class TextCodec:
    """Encodes and decodes with one model's vocabulary, and says what is wrong where it cannot.

    Args:
        delegate: the model's own tokenizer; not changed.
        vocab_size: tokens that the model knows; None for those of the tokenizer.

    Attributes:
        vocab_size: tokens that the model knows.
        special_texts: the texts of the tokens that `decode` leaves out.

    Raises:
        UnsupportedTokenizerError: an id is larger than any honest one, or there are no tokens, or the tokenizer fails
            at a text without characters.
    """

    def __init__(self, delegate: PreTrainedTokenizerBase, *, vocab_size: int | None = None) -> None:
        self._delegate = delegate
        self._num_tokens = _checked_num_tokens(delegate.get_vocab())
        self.vocab_size = self._num_tokens if vocab_size is None else vocab_size
        self._texts: dict[int, str] = {}
        around, self.special_texts = self._try_out()
        self._adds_bos = delegate.bos_token is not None and around[:1] == [delegate.bos_token_id]

    def encode(self, prompt: str | Tokens, add_special_tokens: bool = True) -> NDArray[np.integer[Any]]:
        """Returns the tokens of a text, by the contract of `TextTokenizer.encode`."""
        if not isinstance(prompt, str):
            self.check_token_ids(prompt, "prompt")
            return np.asarray(prompt, dtype=np.int64)
        _check_unicode(prompt)
        tokens = self._encode(prompt, add_special_tokens)
        if add_special_tokens and self._adds_bos and tokens[1:2] == tokens[:1]:
            del tokens[0]  # the text brings its own
        return self._known(tokens)

    def encoded(self, text: str, encode: Callable[[], list[int]]) -> NDArray[np.integer[Any]]:
        """Returns the tokens that a function gives for a text, checked like those of `encode`."""
        _check_unicode(text)
        return self._known(self._guarded(encode))

    def decode(self, encoded: Tokens, *, skip_special_tokens: bool = True) -> str:
        """Returns the text of tokens, by the contract of `TextTokenizer.decode`."""
        if self.vocab_size > self._num_tokens:
            encoded = [token for token in encoded if token < self._num_tokens]
        try:
            text = self._delegate.decode(
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
        """Returns the text of one token, by the contract of `TextTokenizer.text_of`."""
        if token not in self._texts:
            self._texts[token] = self.special_texts.get(token) or self._text_behind(token)
        return self._texts[token]

    def spellings(self, word: str) -> list[list[int]]:
        """Returns the tokens of a word by itself, after a space, and at the beginning of a line."""
        before = self._encode("\n", add_special_tokens=False)
        spelled = [self._encode(text, add_special_tokens=False) for text in (word, f" {word}", f"\n{word}")]
        if spelled[-1][: len(before)] == before:
            del spelled[-1][: len(before)]
        return [list(tokens) for tokens in dict.fromkeys(map(tuple, spelled)) if tokens]

    def check_token_ids(self, token_ids: Iterable[object], name: str) -> None:
        """Checks token ids that a request brings.

        Raises:
            InvalidRequestError: one of `name` is not in the vocabulary.
        """
        for token_id in token_ids:
            if not isinstance(token_id, int | np.integer) or not 0 <= token_id < self.vocab_size:
                raise InvalidRequestError(
                    f"a token id of {name} is not in the vocabulary",
                    found=shown(token_id),
                    allowed=f"0 to {self.vocab_size - 1}",
                )

    def _known(self, tokens: list[int]) -> NDArray[np.integer[Any]]:
        """Returns tokens, all of which the model knows."""
        if tokens and max(tokens) >= self.vocab_size:
            unknown = next(token for token in tokens if token >= self.vocab_size)
            raise InvalidRequestError(
                "the prompt has a token that the tokenizer knows and the model does not",
                found=f"{self._delegate.convert_ids_to_tokens(unknown)!r}, token {unknown}",
                allowed=f"tokens 0 to {self.vocab_size - 1}",
            )
        return np.asarray(tokens, dtype=np.int64)

    def _text_behind(self, token: int) -> str:
        """Returns the text of a token behind another one, where it keeps a space that would vanish at the beginning."""
        before = self._encode("a", add_special_tokens=False)
        return self.decode([*before, token]).removeprefix(self.decode(before))

    def _encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        # A tokenizer.json may bring padding and truncation from its training, and `verbose` logs what is too long
        # for it: neither is the tokenizer's business here.
        encode = partial(self._delegate.encode, padding=False, truncation=False, verbose=False)
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
            return self._encode(""), special_texts(self._delegate)
        except Exception as error:
            raise UnsupportedTokenizerError(
                "the model's tokenizer does not work",
                found=error.found if isinstance(error, InvalidRequestError) else f"{type(error).__name__}: {error}",
                cure="Take another tokenizer.json.",
            ) from error


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
