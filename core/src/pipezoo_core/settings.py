"""The base of all settings: frozen, typed, and with errors that say what is allowed."""

from __future__ import annotations

import difflib
import enum
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from pipezoo_core.errors import InvalidSettingError, shown

__all__ = ["Settings"]

_BOUNDS = {
    "ge": "at least {}",
    "gt": "above {}",
    "le": "at most {}",
    "lt": "below {}",
    "min_length": "not shorter than {}",
    "max_length": "not longer than {}",
}
_MAX_COMPARED = 100  # characters of a name with which others are compared
_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


class Settings(BaseModel):
    """Base of all settings: frozen, and a bad or unknown value is an `InvalidSettingError`.

    Attributes:
        elsewhere: names that other programs have for such settings, and what to write in their place.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    elsewhere: ClassVar[Mapping[str, str]] = {}

    def __init__(self, /, **values: Any) -> None:
        for name, value in values.items():
            if name not in type(self).model_fields:
                raise _unknown_setting(type(self), name)
            if _has_bool(value) and _is_of_numbers(type(self).model_fields[name].annotation):
                raise _not_valid(type(self), name, value)
        try:
            super().__init__(**values)
        except ValidationError as error:
            invalid = _invalid_setting(type(self), error)
            raise invalid from invalid.__cause__ or error

    def updated(self, /, **changes: Any) -> Self:
        """Returns a copy with these settings changed, checked like new ones."""
        return type(self)(**{**self.given(type(self)), **changes})

    def given(self, kind: type[Settings]) -> dict[str, Any]:
        """Returns those of these settings that a kind of settings has, too, without what was left at its default."""
        return {name: getattr(self, name) for name in kind.model_fields if name in self.model_fields_set}


def _unknown_setting(cls: type[Settings], name: str) -> InvalidSettingError:
    if name in cls.elsewhere:
        cure = f"Write {cls.elsewhere[name]}."
    else:
        near = difflib.get_close_matches(name[:_MAX_COMPARED], cls.model_fields, n=1)
        cure = f"Did you mean {near[0]!r}?" if near else "Check the spelling."
    return InvalidSettingError(f"unknown setting {shown(name)}", allowed=", ".join(sorted(cls.model_fields)), cure=cure)


def _invalid_setting(cls: type[Settings], error: ValidationError) -> InvalidSettingError:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidSettingError):  # a validator of ours said it all
        return cause
    return _not_valid(cls, str(first["loc"][0]), first["input"])


def _not_valid(cls: type[Settings], name: str, found: object) -> InvalidSettingError:
    field = cls.model_fields[name]
    return InvalidSettingError(
        f"setting {name!r} is not valid",
        found=shown(found),
        allowed=field.description or _words(field.annotation, field.metadata),
    )


def _has_bool(value: object) -> bool:
    if isinstance(value, Mapping):
        return _has_bool([*value, *value.values()])
    items = value if isinstance(value, list | tuple | set | frozenset) else [value]
    return any(isinstance(item, bool) for item in items)


def _is_of_numbers(annotation: Any) -> bool:
    """Whether a field has numbers and no bools, which pydantic would take as 0 and 1."""
    kinds = list(_kinds(annotation))
    return (int in kinds or float in kinds) and bool not in kinds


def _kinds(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _kinds(argument)


def _words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Says which values a field takes: `int | None` that is `ge=2` is "a whole number, at least 2, or None"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, types.UnionType):
        kinds = [_words(argument, metadata) for argument in arguments if argument is not type(None)]
        return " or ".join(kinds) + (", or None" if type(None) in arguments else "")
    if origin in (list, tuple):
        return f"a list, each {_words(arguments[0])}"
    if origin is Literal:
        return ", ".join(map(str, arguments))
    kind = origin or annotation
    if not isinstance(kind, type):
        return "another value"
    if issubclass(kind, Mapping):
        return f"a mapping from {_words(arguments[0])} to {_words(arguments[1])}"
    if issubclass(kind, enum.StrEnum):
        return ", ".join(kind)
    return ", ".join([_KINDS.get(kind, f"a {kind.__name__}"), *_bounds(metadata)])


def _bounds(metadata: Iterable[Any]) -> Iterator[str]:
    for part in metadata:
        for bound in getattr(part, "metadata", [part]):  # a pydantic `Field` has several
            for name, words in _BOUNDS.items():
                if hasattr(bound, name):
                    yield words.format(f"{getattr(bound, name):,}".removesuffix(".0"))
