"""How a model marks the parts of its answers: transformers' `response_template`, version 1, read and checked.

A template is data: for each field of the answer the text or expression at which it opens and closes, and how its text
is read. Checkpoints bring theirs in tokenizer_config.json; `families` has ours for those that do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import regex

from pipezoo_core.errors import UnsupportedTokenizerError, shown

__all__ = ["Anchor", "Field", "ResponseTemplate"]

_SECONDS = 0.3  # for one search: expressions come with checkpoints
_CONTENTS = ("text", "int", "float", "bool", "json", "xml-inline", "kv-lines")
_OF_TEMPLATE = {"version", "defaults", "fields", "start_anchor", "start_anchor_pattern"}
_OF_FIELD = {
    *("open", "open_pattern", "close", "close_pattern", "content", "content_args"),
    *("repeats", "join", "optional", "transform", "transform_each"),
}


class Anchor:
    """A place in a text: one of several literal texts, or what an expression matches.

    Args:
        literals: the texts; of two at the same place, the longer one.
        pattern: the expression, in the syntax of the package regex.

    Raises:
        ValueError: there are no literals and no pattern, or they are not sound.
    """

    def __init__(self, literals: Sequence[str] | None = None, pattern: str | None = None) -> None:
        self.literals = literals
        if literals is not None:
            if not literals or not all(isinstance(text, str) and text for text in literals):
                raise ValueError(f"texts that mark nothing: {literals}")
            ordered = sorted(literals, key=len, reverse=True)
            pattern = "|".join(map(regex.escape, ordered))
        if not isinstance(pattern, str):
            raise ValueError(f"an expression that is no text: {pattern}")
        try:
            self._regex = regex.compile(pattern, regex.DOTALL)
        except regex.error as error:
            raise ValueError(f"{pattern!r} is no expression: {error}") from error

    def find(self, text: str, start: int, *, is_whole: bool) -> Any | None:
        """Returns the first match from a place on, or None.

        Args:
            text: the text.
            start: the place.
            is_whole: whether the text has ended. Before, the match is `partial` where only its beginning is there.

        Raises:
            TimeoutError: that takes too long.
        """
        return self._regex.search(text, start, partial=not is_whole, timeout=_SECONDS)

    def end_of_last(self, text: str) -> int | None:
        """Returns where the last match ends, or None where there is none."""
        ends = [match.end() for match in self._regex.finditer(text, timeout=_SECONDS)]
        return ends[-1] if ends else None

    def may_grow(self, match: Any, text: str) -> bool:
        """Whether more text may make another one of a whole match, which may end before the text does.

        "</call>(?:</calls>)?"  at  "</call></ca"
        """
        if self.literals is None:
            return self._regex.fullmatch(text, match.start(), partial=True, timeout=_SECONDS) is not None
        rest = text[match.start() :]
        return any(len(literal) > len(rest) and literal.startswith(rest) for literal in self.literals)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A part of an answer.

    Attributes:
        name: `content`, `tool_calls`, a name of the reasoning, or another one, whose text goes nowhere.
        open: where it begins; None for the one that everything outside of others belongs to.
        close: where it ends; None for the answer's end.
        content: how its text is read.
        content_args: settings of that.
        join: what stands between several parts of the same name.
        transform: the shape of a tool call, with `{…}` for what was read.
        transform_each: whether the text is a list, whose entries are transformed one by one.
    """

    name: str
    open: Anchor | None
    close: Anchor | None
    content: str = "text"
    content_args: Mapping[str, Any] = field(default_factory=dict)
    join: str | None = None
    transform: Any = None
    transform_each: bool = False

    @classmethod
    def from_dict(cls, name: str, spec: object) -> Self:
        """Reads a field.

        Raises:
            ValueError: it is not sound.
        """
        if not isinstance(spec, Mapping) or (unknown := set(spec) - _OF_FIELD):
            raise ValueError(f"field {name!r}: {sorted(unknown) if isinstance(spec, Mapping) else shown(spec)}")
        content = spec.get("content", "text")
        if content not in _CONTENTS:
            raise ValueError(f"field {name!r}: content {content!r}")
        if not isinstance(args := spec.get("content_args", {}), Mapping):
            raise ValueError(f"field {name!r}: content_args {shown(args)}")
        if not isinstance(join := spec.get("join"), str | None):
            raise ValueError(f"field {name!r}: join {shown(join)}")
        if name == "tool_calls" and spec.get("transform") is None:
            raise ValueError("tool_calls have no transform, which says what is a call's name")
        return cls(
            name=name,
            open=_anchor(spec, "open", "open_pattern"),
            close=_anchor(spec, "close", "close_pattern"),
            content=content,
            content_args=args,
            join=join,
            transform=spec.get("transform"),
            transform_each=bool(spec.get("transform_each", False)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseTemplate:
    """A whole template.

    Attributes:
        fields: what has an opening, in their order.
        implicit: what everything else belongs to; None where that is dropped.
        start: what the prompt has before the answer.
    """

    fields: tuple[Field, ...]
    implicit: Field | None
    start: Anchor

    @classmethod
    def from_dict(cls, spec: object) -> Self:
        """Reads a template.

        Raises:
            UnsupportedTokenizerError: it is not sound, or of another version.
        """
        try:
            return cls._from_dict(spec)
        except ValueError as error:
            raise UnsupportedTokenizerError(
                "the tokenizer's response_template cannot be read",
                found=error,
                allowed="version 1, as transformers documents it",
            ) from error

    @classmethod
    def _from_dict(cls, spec: object) -> Self:
        if not isinstance(spec, Mapping) or spec.get("version", 1) != 1 or not set(spec) <= _OF_TEMPLATE:
            raise ValueError(shown(spec))
        if not isinstance(spec.get("fields"), Mapping) or not spec["fields"]:
            raise ValueError("no fields")
        defaults = spec.get(
            "defaults", {}
        )  # of transformers' message, such as its role, which an answer has no place for
        if not isinstance(defaults, Mapping) or any(defaults.get(name) for name in spec["fields"]):
            raise ValueError(f"defaults {shown(defaults)}, which may not be texts or calls that the model never wrote")
        fields = [Field.from_dict(name, entry) for name, entry in spec["fields"].items()]
        implicit = [entry for entry in fields if entry.open is None]
        if len(implicit) > 1:
            raise ValueError(f"fields without an opening: {', '.join(entry.name for entry in implicit)}")
        start = _anchor(spec, "start_anchor", "start_anchor_pattern")
        if start is None:
            raise ValueError("no start_anchor")
        return cls(
            fields=tuple(entry for entry in fields if entry.open is not None),
            implicit=implicit[0] if implicit else None,
            start=start,
        )

    def behind_start(self, prompt: str) -> str:
        """Returns what the prompt itself has of the answer, such as the mark that its reasoning begins."""
        end = self.start.end_of_last(prompt)
        return "" if end is None else prompt[end:]


def _anchor(spec: Mapping[str, Any], literal: str, pattern: str) -> Anchor | None:
    if literal in spec and pattern in spec:
        raise ValueError(f"both {literal} and {pattern}")
    if literal in spec:
        texts = [spec[literal]] if isinstance(spec[literal], str) else spec[literal]
        if not isinstance(texts, list):
            raise ValueError(f"{literal} {shown(texts)}")
        return Anchor(literals=texts)
    return Anchor(pattern=spec[pattern]) if pattern in spec else None
