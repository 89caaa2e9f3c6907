"""Settings of some of a model's layers, by regular expressions over their names: PEFT's `rank_pattern` and the like."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Generic, TypeVar

import regex

from pipezoo_core.errors import CorruptCheckpointError, UnsupportedAdapterError, shown

__all__ = ["LayerPatterns"]

_MAX_SECONDS = 10.0  # of computing: to compile the patterns of one setting, and match them with all names
_MAX_LENGTH = 1000  # of a pattern, which bounds what it takes to compile it

Value = TypeVar("Value")


class LayerPatterns(Generic[Value]):
    """Values by patterns, each of which matches the end of a layer's name, from a dot on, as in PEFT.

    The patterns come from a file that is not trusted, and to match one can take for ever: so the time is bounded, with
    the help of the package regex. Real ones take less than a millisecond.

    Args:
        patterns: regular expression -> value. Of several that match a name, the first counts.
        where: the file and the setting, for errors.

    Raises:
        CorruptCheckpointError: one is no regular expression.
        UnsupportedAdapterError: one is too long, or they take too long.
    """

    def __init__(self, patterns: Mapping[str, Value], where: str) -> None:
        self._where = where
        self._seconds_left = _MAX_SECONDS
        self._patterns = [(pattern, self._compile(pattern), value) for pattern, value in patterns.items()]

    def find(self, layer: str, default: Value) -> Value:
        """Returns the value of a layer; the default where no pattern matches its name.

        Raises:
            UnsupportedAdapterError: all names so far take too long.
        """
        for pattern, expression, value in self._patterns:
            begin = time.thread_time()
            try:
                is_match = expression.match(layer, timeout=self._seconds_left) is not None
            except TimeoutError as error:
                raise self._too_involved(pattern) from error
            self._spend(begin, pattern)
            if is_match:
                return value
        return default

    def _compile(self, pattern: str) -> regex.Pattern[str]:
        if len(pattern) > _MAX_LENGTH:
            raise self._too_involved(pattern)
        begin = time.thread_time()
        try:
            expression = regex.compile(rf"(.*\.)?({pattern})$")
        except (regex.error, OverflowError, RecursionError) as error:
            raise CorruptCheckpointError(
                f"{self._where} has an invalid regular expression", found=shown(pattern)
            ) from error
        self._spend(begin, pattern)
        return expression

    def _spend(self, begin: float, pattern: str) -> None:
        self._seconds_left -= time.thread_time() - begin
        if self._seconds_left <= 0:
            raise self._too_involved(pattern)

    def _too_involved(self, pattern: str) -> UnsupportedAdapterError:
        return UnsupportedAdapterError(
            f"{self._where} has patterns that are too involved",
            found=shown(pattern),
            allowed=f"{_MAX_LENGTH} characters each, and {_MAX_SECONDS:g} seconds to match them with all layers",
            cure="Write them without alternatives and repetitions that match the same text in many ways.",
        )
