"""Finds where a request's last tokens occurred before. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Match", "PromptLookup"]

_MAX_LENGTH = 16  # tokens of a match: a longer one says nothing that this one does not
_MAX_PLACES = 4096  # that are looked at: a token that stands at more of them takes no longer
_ROOM = 256


@dataclass(frozen=True, slots=True)
class Match:
    """Where the last tokens of a list occurred before.

    Attributes:
        length: how many tokens are the same.
        end: the place behind the earlier ones.
    """

    length: int
    end: int


class PromptLookup:
    """Finds the longest ending of a growing list that occurred in it before (prompt lookup, or n-gram, decoding).

    The idea is Apoorv Saxena's, https://github.com/apoorvumang/prompt-lookup-decoding. There is no index: numpy
    compares the last token with all others, and those before it with what is left of them. Of a token that is very
    frequent, only the last 4096 places count.

    Args:
        tokens: the list, which its owner appends to.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._copy: NDArray[np.int64] = np.empty(_ROOM, dtype=np.int64)
        self._num_copied = 0

    def find(self) -> Match | None:
        """Returns the longest match, of those as long the latest; None where the last token is new.

        The longest is that of the last 4096 places of the last token.

        In `a b c x b c y b c` the last two occurred twice before. The latter ended in front of place 6, where `y` is.
        """
        tokens = self._up_to_now()
        last = len(tokens) - 1
        if last < 1:
            return None
        ends = (tokens[:last] == tokens[last]).nonzero()[0][-_MAX_PLACES:]
        if len(ends) and ends[-1] + 1 >= _MAX_LENGTH:
            latest = int(ends[-1]) + 1
            if (tokens[latest - _MAX_LENGTH : latest] == tokens[-_MAX_LENGTH:]).all():
                return Match(_MAX_LENGTH, latest)
        length = 0
        while len(ends) and length < _MAX_LENGTH:
            found, length = ends, length + 1
            ends = ends[ends.searchsorted(length) :]  # they rise
            ends = ends[tokens[ends - length] == tokens[last - length]]
        return Match(length, int(found[-1]) + 1) if length else None

    def follow(self, match: Match, count: int) -> list[int]:
        """Returns so many tokens that would come next if all went on as it did behind the match.

        Behind the end of the list that is what the match itself predicts: in `a b a b` it goes on with `a b a`.
        """
        period = len(self._tokens) - match.end
        if period >= count:
            return list(self._tokens[match.end : match.end + count])
        return [self._tokens[match.end + i % period] for i in range(count)]

    def _up_to_now(self) -> NDArray[np.int64]:
        num_tokens = len(self._tokens)
        if num_tokens > len(self._copy):  # twice as much, so that all growing together takes as long as one copy
            self._copy = np.concatenate((self._copy, np.empty(num_tokens, dtype=np.int64)))
        self._copy[self._num_copied : num_tokens] = self._tokens[self._num_copied :]
        self._num_copied = num_tokens
        return self._copy[:num_tokens]
