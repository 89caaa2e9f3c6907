"""How often guesses come true, by the length of the match they come from. Knows no torch."""

from __future__ import annotations

__all__ = ["Acceptance"]

_NUM_CLASSES = 5  # of matches: of 1 token, 2 and 3, 4 to 7, 8 to 15, and more
_MEMORY = 0.9  # what a guess counts when there is one more
_PRIOR = (0.2, 0.4, 0.6, 0.7, 0.8)
_PRIOR_COUNT = 2.0


class Acceptance:
    """Counts guessed tokens that came true, and guesses that did not; what is long ago counts less.

    A guess from a long match comes true more often than one from a single token, so each class of lengths has its own
    count, which begins as if two tokens had been seen.
    """

    def __init__(self) -> None:
        self._right = [0.0] * _NUM_CLASSES
        self._wrong = [0.0] * _NUM_CLASSES

    @property
    def greatest(self) -> float:
        """The rate of the matches whose guesses come true most often."""
        return max(map(self._rate, range(_NUM_CLASSES)))

    def rate(self, match_length: int) -> float:
        """Returns how likely a token is to come true that follows a match of so many tokens, from 0 to 1."""
        return self._rate(_class_of(match_length))

    def note(self, match_length: int, num_right: int, *, is_wrong: bool) -> None:
        """Notes what came of a guess.

        Args:
            match_length: of the match that it followed.
            num_right: how many of its tokens came true, one after the other.
            is_wrong: whether another token came then.
        """
        number = _class_of(match_length)
        self._right[number] = self._right[number] * _MEMORY + num_right
        self._wrong[number] = self._wrong[number] * _MEMORY + is_wrong

    def _rate(self, number: int) -> float:
        right, wrong = self._right[number], self._wrong[number]
        return (right + _PRIOR[number] * _PRIOR_COUNT) / (right + wrong + _PRIOR_COUNT)


def _class_of(match_length: int) -> int:
    return min(match_length.bit_length(), _NUM_CLASSES) - 1
