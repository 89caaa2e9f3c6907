"""The text of a tool call's field to calls: piece by piece where it is plain JSON, and otherwise at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipezoo_core.chat_responses.field_values import of_schema, transformed, value_of
from pipezoo_core.chat_responses.json_scanner import ITEM, JsonPath, JsonPiece, JsonScanner
from pipezoo_core.chat_responses.response import ToolCallDelta
from pipezoo_core.chat_responses.template import Field

__all__ = ["CallReader", "CollectedCalls", "StreamedCalls", "new_reader"]


class CallReader(Protocol):
    """Reads one field. A call is given out from the moment on when its name and the first of its arguments are there.

    Attributes:
        num_calls: those that were given out so far, the field's own ones.
        left: text of the field behind the whole JSON of its calls.
    """

    num_calls: int
    left: str

    def wants_more(self) -> bool:
        """Whether what comes next is fed, and the field's close is not looked for in it."""

    def feed(self, text: str) -> tuple[int, list[ToolCallDelta]]:
        """Takes text while it wants more, and returns how many characters it took, and what they made certain."""

    def rest(self, text: str) -> list[ToolCallDelta]:
        """Takes text of the field when it wants no more."""

    def finish(self, *, is_cut: bool) -> list[ToolCallDelta]:
        """Says that the field has ended, or the answer in the middle of it (`is_cut`)."""


def new_reader(
    field: Field, captures: Mapping[str, str], first_index: int, properties: Mapping[str, Mapping[str, Any]]
) -> CallReader:
    """Returns the reader of a field that has opened.

    Args:
        field: the field.
        captures: the named groups of its opening.
        first_index: of its first call.
        properties: name of a function -> those of its arguments' schema.
    """
    paths = _paths(field, captures)
    if paths is None:
        return CollectedCalls(field, captures, first_index, properties)
    return StreamedCalls(*paths, first_index=first_index)


def _paths(field: Field, captures: Mapping[str, str]) -> tuple[JsonPath | str, JsonPath] | None:
    """Returns where a call's name (or the name itself) and its arguments are in the JSON; None where that is unclear.

    {"function": "{content}"}                                          ->  ("name",), ("arguments",)
    {"function": {"name": "{name}", "arguments": "{content}"}}         ->  the group's text, ()
    {"function": {"name": "{name}", "arguments": "{parameters}"}} each ->  ([], "name"), ([], "parameters")
    """
    if field.content != "json" or field.content_args or not isinstance(field.transform, Mapping):
        return None
    function = field.transform.get("function")
    if function == "{content}" and not field.transform_each:
        return ("name",), ("arguments",)
    if not isinstance(function, Mapping):
        return None
    name, arguments = (_placeholder(function.get(key), field.transform_each) for key in ("name", "arguments"))
    if name is None and isinstance(written := function.get("name"), str):
        name = captures.get(written[1:-1])
        if name is not None:
            name = name.strip()
    return None if name is None or arguments is None else (name, arguments)


def _placeholder(text: object, is_each: bool) -> Any:
    if not isinstance(text, str) or not (text.startswith("{") and text.endswith("}")):
        return None
    first, *keys = text[1:-1].split(".")
    if is_each:
        return (ITEM, first, *keys)
    return tuple(keys) if first == "content" else None


class StreamedCalls:
    """Calls whose JSON is given out as it is written.

    Args:
        name: where their names are, or the only call's name.
        arguments: where their arguments are. Those that are no object are given out as a whole: a text is taken as
            JSON within JSON, and null stands for no arguments.
        first_index: of the first one.
    """

    def __init__(self, name: JsonPath | str, arguments: JsonPath, *, first_index: int) -> None:
        self.num_calls = 0
        self.left = ""
        self._name_path = name if isinstance(name, tuple) else None
        self._only_name = name if isinstance(name, str) else None
        self._arguments_path = arguments
        self._scanner = JsonScanner([path for path in (self._name_path, arguments) if path is not None])
        self._next_index = first_index
        self._is_blank = True
        self._out: list[ToolCallDelta] = []
        self._new_call()

    def _new_call(self) -> None:
        self._name = self._only_name
        self._name_text: list[str] = []
        self._held: list[str] | None = None  # arguments that are not given out yet
        self._has_arguments = False
        self._is_out = False
        self._is_open = False
        self._is_ready = False

    def wants_more(self) -> bool:
        """Whether the JSON has not ended, well or not."""
        return not (self._scanner.is_complete or self._scanner.is_broken)

    def feed(self, text: str) -> tuple[int, list[ToolCallDelta]]:
        """Takes text of the JSON."""
        used, pieces = self._scanner.feed(text)
        self._is_blank = self._is_blank and not text[:used].strip()
        for piece in pieces:
            if piece.path == self._name_path:
                self._take_name(piece)
            else:
                self._take_arguments(piece)
        if self._scanner.is_complete:
            self._end_call()
        return used, self._taken()

    def rest(self, text: str) -> list[ToolCallDelta]:
        """Takes what is no JSON: behind arguments that broke off, it is theirs."""
        self._is_blank = self._is_blank and not text.strip()
        if self._is_open and self._is_out and self._held is None:
            self._give(text)
        elif self._scanner.is_complete:
            self.left += text
        return self._taken()

    def finish(self, *, is_cut: bool) -> list[ToolCallDelta]:
        """Returns a call whose name came before its arguments, and these did not; nothing else that is not out yet."""
        if self._only_name is not None and self._is_blank:
            self._give("" if is_cut else "{}")
        return self._taken()

    def _taken(self) -> list[ToolCallDelta]:
        out, self._out = self._out, []
        return out

    def _take_name(self, piece: JsonPiece) -> None:
        if piece.begins and (self._name is not None or self._name_text):
            self._end_call()
        self._name_text.append(piece.text)
        if piece.ends:
            self._name = _decoded_name("".join(self._name_text))
            self._give_held()

    def _take_arguments(self, piece: JsonPiece) -> None:
        if piece.begins:
            if self._has_arguments:
                self._end_call()
            self._has_arguments = self._is_open = True
            self._held = []
        if self._held is None:
            self._give(piece.text)
        else:
            self._held.append(piece.text)
            whole = "".join(self._held)
            self._is_ready = piece.ends or whole.startswith("{")
            if piece.ends and not whole.startswith("{"):
                self._held = [_as_arguments(whole)]
            self._give_held()
        if piece.ends:
            self._is_open = False

    def _give_held(self) -> None:
        if self._name is not None and self._held is not None and self._is_ready:
            whole, self._held = "".join(self._held), None
            self._give(whole)

    def _give(self, arguments: str) -> None:
        assert self._name is not None
        index = self._next_index + self.num_calls - (1 if self._is_out else 0)
        if not self._is_out:
            self.num_calls += 1
        if arguments or not self._is_out:
            self._out.append(ToolCallDelta(index, None if self._is_out else self._name, arguments))
        self._is_out = True

    def _end_call(self) -> None:
        if self._name is not None and not self._has_arguments:
            self._give("{}")
        self._new_call()


class CollectedCalls:
    """Calls that are read when all of their text is there.

    Args:
        field: how they are read.
        captures: the named groups of the field's opening.
        first_index: of the first one.
        properties: name of a function -> those of its arguments' schema.
    """

    def __init__(
        self,
        field: Field,
        captures: Mapping[str, str],
        first_index: int,
        properties: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.num_calls = 0
        self.left = ""
        self._field = field
        self._captures = captures
        self._first_index = first_index
        self._properties = properties
        self._text: list[str] = []

    def wants_more(self) -> bool:
        """The close is looked for in all of the text."""
        return False

    def feed(self, text: str) -> tuple[int, list[ToolCallDelta]]:  # noqa: ARG002 - other readers take it
        """Takes nothing."""
        return 0, []

    def rest(self, text: str) -> list[ToolCallDelta]:
        """Keeps text."""
        self._text.append(text)
        return []

    def finish(self, *, is_cut: bool) -> list[ToolCallDelta]:  # noqa: ARG002 - other readers ask
        """Returns the calls; none where the text is not what it should be."""
        try:
            calls = [self._call(shape) for shape in self._shapes()]
        except (ValueError, TypeError, KeyError, IndexError, TimeoutError):  # settings may be of any kind, too
            return []
        self.num_calls = len(calls)
        return [ToolCallDelta(self._first_index + i, name, arguments) for i, (name, arguments) in enumerate(calls)]

    def _shapes(self) -> Sequence[Any]:
        field = self._field
        value = value_of("".join(self._text), field.content, field.content_args)
        if field.transform_each:
            return [transformed(field.transform, {**self._captures, **entry}) for entry in value]
        return [transformed(field.transform, {**self._captures, "content": value})]

    def _call(self, shape: Mapping[str, Any]) -> tuple[str, str]:
        function = shape["function"]
        name, arguments = function["name"], function.get("arguments")
        if not isinstance(name, str) or not _is_unicode(name):
            raise ValueError("a name that is no text")
        name = name.strip()
        if isinstance(arguments, str) and _is_unicode(arguments):
            return name, arguments
        if isinstance(arguments, Mapping):
            arguments = of_schema(arguments, self._properties.get(name, {}))
        text = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
        return name, text if _is_unicode(text) else json.dumps(arguments)


def _is_unicode(text: str) -> bool:
    r"""Whether a text has no half of a pair, such as JSON's `"\ud800"`, which no encoding knows."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded_name(text: str) -> str | None:
    try:
        name = json.loads(text)
        return name if isinstance(name, str) and _is_unicode(name) and name else None
    except ValueError:
        return None


def _as_arguments(text: str) -> str:
    """Returns arguments that are no object: null are none, and a text is what is in it."""
    value = json.loads(text)
    if isinstance(value, str):
        return value if _is_unicode(value) else text
    return "{}" if value is None else text
