"""The base of what a client may send: typed strictly, and with no field that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from pipezoo_core.errors import shown

__all__ = ["UNKNOWN_FIELD", "Body", "Listed", "check_size"]

UNKNOWN_FIELD = "unknown_field"
"""The kind of pydantic's error for a field that is not known."""

_MAX_COMPARED = 100  # characters of a name with which others are compared

Item = TypeVar("Item")


class _GivenUpEarly:
    """Pydantic's `FailFast`, which has no hash and so cannot be one of several types of a field."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: Any = handler(source)
        assert schema["type"] == "list"
        return schema | {"fail_fast": True}


Listed = Annotated[list[Item], _GivenUpEarly()]
"""A list that is given up at its first bad item: of a million of them, each would have an error of its own."""


class Body(BaseModel):
    """Base of all bodies, and of the objects in them.

    A field that is null is one that is not given, also where it is not known: many clients write all fields they know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _knows_all_fields(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            given = {name: value for name, value in values.items() if value is not None}
            if not _is_of_known_type(cls, given):
                return {"type": given["type"]}  # which is to blame, and nothing else of the object
            unknown = next((name for name in given if name not in known), None)
            if unknown is not None:
                raise _unknown(unknown, sorted(known))
            return {name: value for name, value in given.items() if name in known}
        return values

    def given(self) -> dict[str, Any]:
        """Returns the fields that the client gave, those that are null left out, with what is in them as it is."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if value is not None and name in self.model_fields_set}


def check_size(value: Any, most: int) -> Any:
    """Returns a value that comes from a client, where it has no more than so many entries; none of them is looked at.

    Raises:
        PydanticCustomError: it has more.
    """
    if isinstance(value, list | dict) and len(value) > most:
        raise PydanticCustomError("too_many", "at most {most} entries", {"most": most})
    return value


def _is_of_known_type(cls: type[Body], values: Mapping[str, Any]) -> bool:
    """Whether an object has no `type`, or one that is read here."""
    annotation: Any = cls.model_fields["type"].annotation if "type" in cls.model_fields else None
    return get_origin(annotation) is not Literal or values.get("type") in (None, *get_args(annotation))


def _unknown(name: object, known: list[str]) -> PydanticCustomError:
    near = difflib.get_close_matches(str(name)[:_MAX_COMPARED], known, n=1)
    cure = f"Did you mean {near[0]!r}?" if near else "Leave it out."
    return PydanticCustomError(
        UNKNOWN_FIELD,
        "unknown field {field} (allowed: {allowed}). {cure}",
        {"field": shown(name), "name": str(name)[:_MAX_COMPARED], "allowed": ", ".join(known), "cure": cure},
    )
