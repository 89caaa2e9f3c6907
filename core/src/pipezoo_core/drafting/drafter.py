"""What one request's answer may go on with, and how likely that is. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipezoo_core.drafting.acceptance import Acceptance
from pipezoo_core.drafting.prompt_lookup import PromptLookup

__all__ = ["MAX_GUESSED", "Drafter", "Guess"]

MAX_GUESSED = 8
"""Most tokens of a guess."""


@dataclass(frozen=True, slots=True)
class Guess:
    """What may come next.

    Attributes:
        tokens: at least one.
        rate: how likely each of them is, from 0 to 1, where those before it are right.
    """

    tokens: Sequence[int]
    rate: float


class Drafter:
    """Guesses what follows the tokens of one request, and measures how often that comes true.

    Each guess is compared with what came, whether it was made a draft or not. So a request whose guesses are not worth
    their rows is seen to have become worth them.

    Args:
        tokens: the request's, which its context appends to.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._lookup = PromptLookup(tokens)
        self._acceptance = Acceptance()
        self._guessed: Sequence[int] = ()
        self._match_length = 0
        self._start = 0

    @property
    def greatest_rate(self) -> float:
        """The rate of the best guess that there may be."""
        return self._acceptance.greatest

    def guess(self) -> Guess | None:
        """Returns what may come next; None where nothing like it came before."""
        self._compare()
        match = self._lookup.find()
        if match is None:
            return None
        self._guessed, self._start = self._lookup.follow(match, MAX_GUESSED), len(self._tokens)
        self._match_length = match.length
        return Guess(self._guessed, self._acceptance.rate(match.length))

    def _compare(self) -> None:
        """Notes what came of the last guess."""
        came = self._tokens[self._start : self._start + len(self._guessed)]
        num_right = 0
        for guessed, token in zip(self._guessed, came, strict=False):
            if guessed != token:
                break
            num_right += 1
        if came:
            self._acceptance.note(self._match_length, num_right, is_wrong=num_right < len(came))
        self._guessed = ()
