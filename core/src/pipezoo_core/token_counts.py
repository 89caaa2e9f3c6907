"""Which tokens a request has, and how often, kept up as it grows. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["TokenCounts"]

_Numbers: TypeAlias = NDArray[np.int64]


class TokenCounts:
    """Counts the tokens of a list that grows at its end, each of them once.

    Args:
        tokens: the list, which its owner appends to.
        start: the first place that counts.
    """

    def __init__(self, tokens: Sequence[int], start: int = 0) -> None:
        self._tokens = tokens
        self._end = start
        self._places: dict[int, int] = {}
        self._distinct: _Numbers = np.zeros(16, dtype=np.int64)
        self._counts: _Numbers = np.zeros(16, dtype=np.int64)

    def up_to_now(self) -> tuple[_Numbers, _Numbers]:
        """Returns each token that the list has, in the order in which they first came, and how often it has it.

        Both are views, [number of different tokens], which hold until the next call.
        """
        for token in self._tokens[self._end :]:
            self._count(token)
        self._end = max(self._end, len(self._tokens))
        return self._distinct[: len(self._places)], self._counts[: len(self._places)]

    def _count(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._distinct):  # twice as many, so that all growing together takes as long as one copy
            self._distinct, self._counts = (np.pad(numbers, (0, place)) for numbers in (self._distinct, self._counts))
        self._distinct[place] = token
        self._counts[place] += 1
