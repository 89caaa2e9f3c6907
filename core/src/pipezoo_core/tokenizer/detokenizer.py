"""Tokens to text, one at a time: a piece is given out once it is certain and never taken back.

Decoding a token alone is wrong, because its text depends on its neighbours: a character's bytes may be spread over
several tokens, and SentencePiece drops a space only where the text begins. Decoding everything anew for each token is
right, but quadratic. So a window is decoded: the last tokens whose text is complete, and those after them.

    prompt "Say " | answer "café!" as the tokens  Ġcaf  <C3>  <A9>  !

    window                     its text     given out
    Say                        Say
    Say Ġcaf                   Say caf      " caf", complete: the window now begins with Ġcaf
    Ġcaf <C3>                   caf�        ""
    Ġcaf <C3> <A9>              café        "é", complete: the window now begins with <C3> <A9>
    <C3> <A9> !                é!           "!"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Detokenizer"]

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_FIRST_WINDOW = 4
_MAX_UNFINISHED = 8  # a character has at most four bytes; longer runs of incomplete text are not text at all


class Detokenizer:
    """The text of an answer, as a continuation of its prompt.

    All pieces together are `decode(prompt + answer)` without `decode(prompt)`. A character that the prompt begins and
    the answer completes belongs to the answer. Bytes that are not UTF-8 become U+FFFD as soon as it is certain that
    they will not become a character. One thing differs: SentencePiece's byte fallback turns a whole run of bytes,
    characters included, into U+FFFD when a later byte of it is wrong; characters given out before stay, and only the
    bytes behind them become U+FFFD.

    Args:
        decode: tokens to text, special tokens left out. The text of a complete run of tokens must not change when
            tokens follow.
        prompt_tokens: what the answer continues.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], *, prompt_tokens: Sequence[int]) -> None:
        self._decode = decode
        self._window = _last_words(decode, prompt_tokens)
        self._text = self._given = decode(self._window) if self._window else ""
        # The next window begins with the answer, unless the prompt ends within a character.
        self._next_start = 0 if self._text.endswith(_INCOMPLETE) else len(self._window)
        self._num_unfinished = 0

    def push(self, token: int) -> str:
        """Returns the text that the next token makes certain, often empty."""
        text = self._decode([*self._window, token])
        if self._next_start and text.endswith(_INCOMPLETE):
            text = self._without_spoiled(text, token)
        if text == self._text and text and not text.endswith(_INCOMPLETE):
            return ""  # a special token: without text of its own it would only lengthen the window
        # A run of bytes that was no text yet has one U+FFFD per byte; when it shrinks, a character is complete, be it
        # U+FFFD itself.
        is_complete = not text.endswith(_INCOMPLETE) or len(text) < len(self._text)
        certain = text if is_complete else text.rstrip(_INCOMPLETE)
        self._window.append(token)
        self._num_unfinished += 1
        self._text = text
        piece = self._continuation(certain)
        if piece and is_complete:
            self._begin_window()
            return piece
        if piece:
            self._given = certain
        if self._num_unfinished > _MAX_UNFINISHED and not is_complete:
            piece += self._shorten()
        return piece

    def finish(self) -> str:
        """Returns what was held back: an incomplete character, as U+FFFD."""
        piece = self._continuation(self._text)
        self._given = self._text
        return piece

    def _without_spoiled(self, text: str, token: int) -> str:
        """Takes the complete tokens out of the window where the next one undoes them; returns the text of the rest.

        Byte fallback decodes neighbouring bytes as one, all or none: `日` and then the first byte of another character
        are four U+FFFD. The rest begins with a byte then, so it has no space that needs something before it.
        """
        rest = self._window[self._next_start :]
        own = self._decode([*rest, token])
        before = self._decode(self._window[: self._next_start])
        is_spoiled = text != before + own and not own.strip(_INCOMPLETE) and text.endswith(_INCOMPLETE + own)
        if not is_spoiled:
            return text
        self._window = rest
        self._next_start = 0
        self._text = self._decode(rest) if rest else ""
        self._given = ""
        return own

    def _continuation(self, text: str) -> str:
        """Returns the text after what was given out, where U+FFFD may have become a character since."""
        stem = len(self._given.rstrip(_INCOMPLETE))
        rest = text[stem:]
        num_still = len(rest) - len(rest.lstrip(_INCOMPLETE))
        return rest[min(num_still, len(self._given) - stem) :]

    def _begin_window(self) -> None:
        del self._window[: self._next_start]
        self._next_start = len(self._window)
        self._num_unfinished = 0
        self._text = self._given = self._decode(self._window)

    def _shorten(self) -> str:
        """Bounds the window inside a long run of incomplete text; returns what became certain by being so old."""
        num_held = len(self._continuation(self._text))
        del self._window[:-_MAX_UNFINISHED]
        self._next_start = 0
        self._text = self._decode(self._window)
        still_held = min(num_held, len(self._text) - len(self._text.rstrip(_INCOMPLETE)))
        self._given = self._text[: len(self._text) - still_held]
        return _INCOMPLETE * (num_held - still_held)


def _last_words(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[int]:
    """Returns the shortest of a few endings that has text and does not begin within a character."""
    size = _FIRST_WINDOW
    while size < len(tokens):
        text = decode(tokens[-size:])
        if text and _INCOMPLETE not in text:
            return list(tokens[-size:])
        size *= 4
    return list(tokens)
