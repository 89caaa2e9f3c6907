"""The text of an answer while it grows, up to the first stop text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipezoo_core.tokenizer.detokenizer import Detokenizer

__all__ = ["TextStream"]


class TextStream:
    """Turns the tokens of one answer into pieces of text, and ends it before a stop text.

    The pieces of `push` and `finish`, together, are the answer's text: a character is never split, and nothing is
    given out that may turn out to begin a stop text. Where several stop texts occur, the one that ends first counts,
    of those the longest, so the result does not depend on how the text is cut into tokens.

    Special tokens have no place in the answer's text, but a stop text may name one. So stop texts are looked for twice:
    in the answer's text, and in the same text with its special tokens.

        stop "</a><end>", tokens  b  </  a>  <end>      held back: "", "</", "</a>"; the text is "b"

    Args:
        decode: tokens to text, special tokens left out.
        prompt_tokens: what the answer continues, at least one.
        stop: texts that end the answer, none of them empty.
        min_new_tokens: a stop text counts only where it lies wholly behind the text of so many tokens.
        special_texts: token -> its text, of the tokens that `decode` leaves out.
        include_stop: whether the text ends with the stop text, special tokens in it included, and not before it.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        prompt_tokens: Sequence[int],
        stop: Sequence[str] = (),
        min_new_tokens: int = 0,
        special_texts: Mapping[int, str] | None = None,
        include_stop: bool = False,
    ) -> None:
        self._detokenizer = Detokenizer(decode, prompt_tokens=prompt_tokens)
        self._stop = tuple(stop)
        self._special_texts = special_texts or {}
        self._num_protected = min_new_tokens
        self._include_stop = include_stop
        self._held = ""
        self._shown: list[int] = []  # where, in the held text, the answer's text is; special tokens are between
        self._stop_text: str | None = None

    @property
    def stop_text(self) -> str | None:
        """The stop text that was met, after which no further text will come; None where none was."""
        return self._stop_text

    def push(self, token: int) -> str:
        """Returns the text that the next token makes certain. End tokens of the model are not pushed."""
        if self._stop_text is not None:
            return ""
        text = self._detokenizer.push(token)
        if self._num_protected:
            self._num_protected -= 1
            return text
        if not self._stop:
            return text
        self._hold(text)
        self._held += self._special_texts.get(token, "")
        return self._certain(self._num_undecided())

    def finish(self) -> str:
        """Returns what was held back, because the answer has ended."""
        if self._stop_text is not None:
            return ""
        self._hold(self._detokenizer.finish())
        return self._certain(0)

    def _hold(self, text: str) -> None:
        self._shown += range(len(self._held), len(self._held) + len(text))
        self._held += text

    def _certain(self, num_undecided: int) -> str:
        """Returns the answer's part of the held text, up to a stop text or the undecided rest, which stays held."""
        end, stop_text = len(self._held) - num_undecided, ""
        stops = self._stops()
        if stops:
            _, end, stop_text = min(stops)
            self._stop_text = stop_text
        text = "".join(self._held[place] for place in self._shown if place < end)
        self._held = "" if stops else self._held[end:]
        self._shown = [] if stops else [place - end for place in self._shown if place >= end]
        return text + stop_text if self._include_stop else text

    def _stops(self) -> list[tuple[int, int, str]]:
        """Returns the end and the begin of the first occurrence of each stop text in the held text, and the text."""
        found = [(start + len(stop), start, stop) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if len(self._shown) < len(self._held):
            text, shown = self._answer(), self._shown
            starts = [(stop, text.find(stop)) for stop in self._stop]
            found += [(shown[start + len(stop) - 1] + 1, shown[start], stop) for stop, start in starts if start >= 0]
        return found

    def _num_undecided(self) -> int:
        """Returns the length of the longest ending of the held text that may be the beginning of a stop text."""
        undecided = self._num_beginning(self._held)
        if len(self._shown) < len(self._held) and (of_answer := self._num_beginning(self._answer())):
            undecided = max(undecided, len(self._held) - self._shown[-of_answer])
        return undecided

    def _num_beginning(self, text: str) -> int:
        longest = max(len(stop) - 1 for stop in self._stop)
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop):
                return size
        return 0

    def _answer(self) -> str:
        return "".join(self._held[place] for place in self._shown)
