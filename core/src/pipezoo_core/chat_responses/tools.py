"""The tools of a request, checked: what the model may call, and whether it has to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pipezoo_core.errors import InvalidRequestError, shown

__all__ = ["MAX_TOOLS", "Function", "Tools"]

MAX_TOOLS = 128
"""Most tools that a request may have."""
_MAX_SIZE = 1 << 16  # characters of all descriptions and schemas
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ALLOWED_NAMES = "at most 64 letters, digits, underscores and dashes"


@dataclass(frozen=True, slots=True)
class Function:
    """A function that the model may call.

    Attributes:
        name: its name.
        parameters: the JSON schema of its arguments.
        is_strict: whether the arguments have to follow the schema.
    """

    name: str
    parameters: Mapping[str, Any]
    is_strict: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What the model may call in a request.

    Attributes:
        given: the tools, as in the request.
        functions: the same ones, read.
        choice: `none`, `auto`, `required`, or the name of the function that has to be called.
        may_call_several: whether one answer may have more than one call.
    """

    given: tuple[Mapping[str, Any], ...]
    functions: tuple[Function, ...]
    choice: str
    may_call_several: bool

    @classmethod
    def read(cls, tools: Sequence[object] | None, choice: object = None, *, may_call_several: bool = True) -> Self:
        """Reads the tools of a request, in OpenAI's form.

        Args:
            tools: `{"type": "function", "function": {"name": …, "description": …, "parameters": …}}` each.
            choice: `none`, `auto`, `required` or `{"type": "function", "function": {"name": …}}`; None is `auto`.
            may_call_several: OpenAI's `parallel_tool_calls`.

        Raises:
            InvalidRequestError: there are too many, or too much of them, or one is not sound, or the choice is of none.
        """
        given: list[Any] = list(tools or ())
        if len(given) > MAX_TOOLS:
            raise InvalidRequestError("there are too many tools", found=len(given), allowed=f"at most {MAX_TOOLS}")
        functions = tuple(_function(number, tool) for number, tool in enumerate(given, start=1))
        names = [function.name for function in functions]
        if len(set(names)) < len(names):
            raise InvalidRequestError("two tools have the same name", found=names)
        _check_size(given)
        chosen = _choice(choice, names)
        if chosen not in ("none", "auto") and not names:
            raise InvalidRequestError("tool_choice asks for a call, and there are no tools", found=shown(choice))
        return cls(given=tuple(given), functions=functions, choice=chosen, may_call_several=may_call_several)

    @property
    def are_offered(self) -> bool:
        """Whether the model is told of them, and its calls are read."""
        return bool(self.given) and self.choice != "none"

    @property
    def callable(self) -> tuple[Function, ...]:
        """Those that may be called."""
        if self.choice in ("none", "auto", "required"):
            return () if self.choice == "none" else self.functions
        return tuple(function for function in self.functions if function.name == self.choice)

    @property
    def have_to_be_called(self) -> bool:
        """Whether the answer is to be a call."""
        return self.choice not in ("none", "auto")


def _function(number: int, tool: object) -> Function:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    if not isinstance(function, Mapping):
        raise InvalidRequestError(
            f"tool {number} is not sound",
            found=shown(tool),
            allowed='a mapping such as {"type": "function", "function": {"name": "f", "parameters": {…}}}',
        )
    unknown = sorted(map(str, set(function) - {"name", "description", "parameters", "strict"}))
    if unknown:
        raise InvalidRequestError(
            f"tool {number} has an unknown entry", found=unknown, allowed="name, description, parameters, strict"
        )
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError(f"the name of tool {number} is not valid", found=shown(name), allowed=_ALLOWED_NAMES)
    if name in ("none", "auto", "required"):
        raise InvalidRequestError(f"the name of tool {number} is one that a tool_choice has", found=name)
    if not isinstance(parameters, Mapping | None) or not isinstance(function.get("description"), str | None):
        raise InvalidRequestError(
            f"tool {number} is not sound",
            found=shown(function),
            allowed="a text as description, a schema as parameters",
        )
    return Function(name, parameters or {"type": "object", "properties": {}}, function.get("strict") is True)


def _check_size(given: Sequence[object]) -> None:
    try:
        size = len(json.dumps(given))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError("the tools are no JSON", found=error) from error
    if size > _MAX_SIZE:
        raise InvalidRequestError(
            "the tools are too large", found=f"{size} characters", allowed=f"at most {_MAX_SIZE} of all together"
        )


def _choice(choice: object, names: Sequence[str]) -> str:
    if choice is None:
        return "auto"
    if choice in ("none", "auto", "required"):
        return str(choice)
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if name not in names:
        raise InvalidRequestError(
            "tool_choice is not valid",
            found=shown(choice),
            allowed=f"none, auto, required, or a function with one of the names {', '.join(names)}",
        )
    return str(name)
