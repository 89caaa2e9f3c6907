r"""One JSON value, character by character, and the parts of it that somebody waits for.

'{"name": "f", "arguments": {"a": 1}}', watching ("name",) and ("arguments",), cut behind '{"a"'

feed('{"name": "f", "arguments": {"a"')  ->  ("name",) '"f"' whole,  ("arguments",) '{"a"'
feed(': 1}}</tool_call>')                ->  ("arguments",) ': 1}' whole; 5 characters are the value's
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["ITEM", "JsonPath", "JsonPiece", "JsonScanner"]

ITEM = "[]"
"""In a path: any entry of a list."""

JsonPath: TypeAlias = tuple[str, ...]

_SPACE = " \t\n\r"
_ENDS = {"{": "}", "[": "]"}
_IN_WORDS = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_MAX_DEPTH = 256


@dataclass(frozen=True, slots=True)
class JsonPiece:
    """A piece of a watched value, as it is written.

    Attributes:
        path: keys, and `ITEM` for the entries of lists; () is the whole.
        text: the piece; it may be empty.
        begins: whether it is the value's first.
        ends: whether it is the value's last.
    """

    path: JsonPath
    text: str
    begins: bool
    ends: bool


class JsonScanner:
    """Follows one value.

    Args:
        watched: the paths of the values whose text is given out, none of them inside of another.

    Attributes:
        is_complete: the value has ended.
        is_broken: what was fed is not the beginning of any JSON value.
    """

    def __init__(self, watched: Collection[JsonPath]) -> None:
        self.is_complete = False
        self.is_broken = False
        self._watched = frozenset(watched)
        self._open: list[str] = []  # the brackets that are to be closed
        self._path: list[str] = []
        self._expected = "value"
        self._word: list[str] | None = None  # a number, true, false or null
        self._string: list[str] | None = None
        self._is_escaped = False
        self._inside: list[tuple[JsonPath, int]] = []  # watched values that have begun, and their depth
        self._pieces: list[JsonPiece] = []
        self._run: list[str] = []
        self._begins = True

    def feed(self, text: str) -> tuple[int, list[JsonPiece]]:
        """Takes the next characters.

        Returns:
            How many of them belong to the value, white space before it included, and the pieces of watched values.
            Where the scanner is broken, the first character that it cannot take is not among them.
        """
        self._pieces = []
        used = 0
        while used < len(text) and not (self.is_complete or self.is_broken) and self._takes(text[used]):
            used += 1
        self._flush(ends=False)
        return used, self._pieces

    def _takes(self, character: str) -> bool:
        """Takes a character, unless the value ends or breaks before it."""
        if self._string is not None:
            self._take_in_string(character)
        elif self._word is not None and character in _IN_WORDS:
            self._word.append(character)
            self._run.append(character)
        else:
            if self._word is not None:
                self._end_word()
            if self.is_complete or self.is_broken:
                return False
            if character in _SPACE:
                self._run.append(character)
            else:
                self._take_outside(character)
        return not self.is_broken

    def _take_in_string(self, character: str) -> None:
        assert self._string is not None
        if character < " ":
            self.is_broken = True
            return
        self._string.append(character)
        self._run.append(character)
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._end_string("".join(self._string))

    def _end_string(self, text: str) -> None:
        self._string = None
        try:
            value = json.loads(text)
        except ValueError:
            self._run.pop()
            self.is_broken = True
            return
        if self._expected == "key":
            self._path.append(value)
            self._expected = ":"
        else:
            self._end_value()

    def _end_word(self) -> None:
        word, self._word = "".join(self._word or ()), None
        try:
            json.loads(word, parse_constant=_refused)
        except ValueError:
            self.is_broken = True
        else:
            self._end_value()

    def _take_outside(self, character: str) -> None:
        closing = bool(self._open) and character == self._open[-1]
        if self._expected in ("value", "value or end") and not (closing and self._expected == "value or end"):
            self._begin_value(character)
        elif self._expected in ("key", "key or end") and character == '"':
            self._expected = "key"
            self._string = [character]
            self._run.append(character)
        elif self._expected == ":" and character == ":":
            self._run.append(character)
            self._expected = "value"
        elif self._expected == ", or end" and character == "," and self._open:
            self._run.append(character)
            self._expected = "key" if self._open[-1] == "}" else "value"
            if self._open[-1] == "]":
                self._path.append(ITEM)
        elif closing and self._expected in (", or end", "key or end", "value or end"):
            if self._expected == "value or end":
                self._path.pop()
            self._open.pop()
            self._run.append(character)
            self._end_value()
        else:
            self.is_broken = True

    def _begin_value(self, character: str) -> None:
        begins_word = character in _IN_WORDS
        if not (begins_word or character in '"{[') or len(self._open) == _MAX_DEPTH:
            self.is_broken = True
            return
        path = tuple(self._path)
        if path in self._watched:
            self._flush(ends=False)
            self._inside.append((path, len(self._open)))
            self._begins = True
        self._run.append(character)
        if character == '"':
            self._string = [character]
        elif begins_word:
            self._word = [character]
        else:
            self._open.append(_ENDS[character])
            self._expected = "key or end" if character == "{" else "value or end"
            if character == "[":
                self._path.append(ITEM)

    def _end_value(self) -> None:
        if self._inside and self._inside[-1][1] == len(self._open):
            self._flush(ends=True)
            self._inside.pop()
        if not self._open:
            self.is_complete = True
            return
        self._path.pop()
        self._expected = ", or end"

    def _flush(self, *, ends: bool) -> None:
        """Gives out what was written since the last time to the innermost watched value that is open."""
        text, self._run = "".join(self._run), []
        if self._inside and (text or ends):
            self._pieces.append(JsonPiece(self._inside[-1][0], text, self._begins, ends))
            self._begins = False


def _refused(constant: str) -> None:
    """Refuses NaN and the infinities, which Python adds to JSON."""
    raise ValueError(constant)
