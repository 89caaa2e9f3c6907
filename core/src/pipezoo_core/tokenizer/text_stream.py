"""The text of an answer while it grows, up to the first stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipezoo_core.tokenizer.detokenizer import Detokenizer

__all__ = ["TextStream"]


class TextStream:
    """Turns the tokens of one answer into pieces of text, and ends it before a stop text.

    The pieces of `push` and `finish`, together, are the answer's text: a character is never split, and nothing is
    given out that may turn out to begin a stop text. Where several stop texts occur, the one that ends first counts,
    of those the longest, so the result does not depend on how the text is cut into tokens.

    Args:
        decode: tokens to text, special tokens left out.
        prompt_tokens: what the answer continues, at least one.
        stop: texts that end the answer, none of them empty.
        min_new_tokens: a stop text counts only where it lies wholly behind the text of so many tokens.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        prompt_tokens: Sequence[int],
        stop: Sequence[str] = (),
        min_new_tokens: int = 0,
    ) -> None:
        self._detokenizer = Detokenizer(decode, prompt_tokens=prompt_tokens)
        self._stop = tuple(stop)
        self._num_protected = min_new_tokens
        self._held = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop text was met; no further text will come."""
        return self._stopped

    def push(self, token: int) -> str:
        """Returns the text that the next token makes certain. End tokens of the model are not pushed."""
        if self._stopped:
            return ""
        text = self._detokenizer.push(token)
        if self._num_protected:
            self._num_protected -= 1
            return text
        text = self._until_stop(text)
        self._held = "" if self._stopped else text[len(text) - self._num_undecided(text) :]
        return text[: len(text) - len(self._held)]

    def finish(self) -> str:
        """Returns what was held back, because the answer has ended."""
        if self._stopped:
            return ""
        text = self._until_stop(self._detokenizer.finish())
        self._held = ""
        return text

    def _until_stop(self, text: str) -> str:
        """Returns the held text and this one, cut before a stop text if there is one."""
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        self._stopped = bool(found)
        return text[: min(found)[1]] if found else text

    def _num_undecided(self, text: str) -> int:
        """Returns the length of the longest ending of the text that may be the beginning of a stop text."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop):
                return size
        return 0
