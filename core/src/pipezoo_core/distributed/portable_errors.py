"""Errors as what JSON can say, so that one rank can raise what went wrong on another. No code travels with them."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from pipezoo_core import errors
from pipezoo_core.errors import PipezooError

__all__ = ["decode_error", "encode_error"]

_KINDS: Mapping[str, type[PipezooError]] = {name: getattr(errors, name) for name in errors.__all__}


def encode_error(error: BaseException) -> dict[str, Any]:
    """Returns an error of pipezoo's with all that it says, of a plugin's own kind as the kind that this derives from.

    Of any other error it returns the text.
    """
    kind = next((base for base in type(error).__mro__ if _KINDS.get(base.__name__) is base), None)
    if kind is None:
        text = "".join(traceback.format_exception_only(error)).strip()
        return {"kind": None, "message": text, "fields": {}}
    assert isinstance(error, PipezooError)
    return {"kind": kind.__name__, "message": str(error), "fields": error.__getstate__()}


def decode_error(data: Mapping[str, Any]) -> Exception:
    """Returns the error that `encode_error` was given; a RuntimeError for one that is none of pipezoo's."""
    if data["kind"] is None:
        return RuntimeError(data["message"])
    return _KINDS[data["kind"]].restored(data["message"], data["fields"])
