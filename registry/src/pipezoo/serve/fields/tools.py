"""What the model may call, and whether it has to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pipezoo.serve.errors import FieldError
from pipezoo.serve.fields.body import Body
from pipezoo_core.chat_responses import Tools
from pipezoo_core.errors import InvalidRequestError

__all__ = ["FunctionName", "FunctionSpec", "FunctionTool", "NamedTool", "read_tools"]


class FunctionSpec(Body):
    """A function: its name, what it does, and the JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    function: FunctionSpec

    def plain(self) -> dict[str, Any]:
        """Returns it as chat templates know it."""
        return {"type": "function", "function": self.function.given()}


class FunctionName(Body):
    """A function, by its name."""

    name: str


class NamedTool(Body):
    """The function that has to be called."""

    type: Literal["function"]
    function: FunctionName


def read_tools(tools: Sequence[dict[str, Any]], choice: object, *, may_call_several: bool) -> Tools:
    """Returns the tools of a request.

    Raises:
        FieldError: there are too many of them, one is not sound, or the choice is none of them.
    """
    try:
        return Tools.read(tools, choice, may_call_several=may_call_several)
    except InvalidRequestError as error:
        param = "tool_choice" if error.what.startswith("tool_choice") else "tools"
        raise FieldError(param, error.what, found=error.found, allowed=error.allowed, cure=error.cure) from error
