"""Where the tokens of a prompt stand in its text."""

from __future__ import annotations

import re

from pipezoo_core.tokenizer import TextTokenizer
from pipezoo_core.tokenizer.detokenizer import Detokenizer

__all__ = ["PromptPlaces"]

_WHITE_SPACE = re.compile(r"\s*")


class PromptPlaces:
    """Goes through a prompt's tokens and its text at once.

    The text need not be what the tokens decode to: it may lack special tokens that the tokenizer added, have others
    written out, or lack a space that SentencePiece puts in front of a word. So a special token takes up its name where
    the text has it, and nothing elsewhere; and white space that only one of the token and the text has is passed over.
    Where the tokenizer rewrites text, as to another number of characters, places are as near as that allows.

        text "a</s>b"      <s>  ▁  a  </s>  ▁  b
        begins at            0  0  0     1  5  5

    Args:
        text: of the prompt.
        tokenizer: made the tokens.
    """

    def __init__(self, text: str, tokenizer: TextTokenizer) -> None:
        self._text = text
        self._special_texts = tokenizer.special_texts
        self._detokenizer = Detokenizer(tokenizer.decode, prompt_tokens=[])
        self._at = 0

    def next(self, token: int) -> int:
        """Returns where the next token's text begins, in characters; at most the prompt's length."""
        name = self._special_texts.get(token)
        piece = self._detokenizer.push(token) if name is None else name
        start = self._at
        if not self._text.startswith(piece, start):
            start, piece = self._behind_white_space(start), piece.lstrip()
        if name is not None and not self._text.startswith(piece, start):
            return self._at
        self._at = min(len(self._text), start + len(piece))
        return start

    def _behind_white_space(self, start: int) -> int:
        found = _WHITE_SPACE.match(self._text, start)
        assert found is not None, "it may be none"
        return found.end()
