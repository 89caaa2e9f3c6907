"""The entries of a config.json's `quantization_config`, typed; and what is said where they ask for too much."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipezoo_core.errors import CorruptCheckpointError, UnsupportedCheckpointError

__all__ = ["Entries", "entry_naming", "not_read", "parsed"]

_MAX_SHOWN = 500


class Entries(BaseModel):
    """Entries of a `quantization_config` that say how weights are stored; others are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


SomeEntries = TypeVar("SomeEntries", bound=Entries)


def parsed(entries: type[SomeEntries], raw: Mapping[str, Any]) -> SomeEntries:
    """Returns the entries of a `quantization_config`.

    Raises:
        CorruptCheckpointError: a value is of another type than its entry has.
    """
    try:
        return entries.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise CorruptCheckpointError(
            f"config.json: quantization_config.{'.'.join(map(str, first['loc']))}: {first['msg']}",
            found=repr(first["input"])[:_MAX_SHOWN],
            cure="Download the checkpoint again.",
        ) from error


def not_read(what: str, found: object, allowed: Collection[object]) -> UnsupportedCheckpointError:
    """Returns the error for a kind of quantization that is not read.

    Args:
        what: of the checkpoint is of that kind.
        found: how the checkpoint calls it.
        allowed: what is read.
    """
    return UnsupportedCheckpointError(
        f"{what} that is not read",
        found=found,
        allowed=list(allowed),
        cure="Take the checkpoint before quantization, a GGUF file of the model, or one that is quantized so.",
    )


def entry_naming(module: str, entries: Iterable[str]) -> str | None:
    """Returns the first of some entries that names a module; None where none does.

    An entry is a part of names between dots, as `lm_head` or `mlp.gate`, or `re:` and a pattern that they begin with.
    A part within a word is none: `gate` does not name `gate_proj`.
    """
    return next((entry for entry in entries if _names(entry, module)), None)


def _names(entry: str, module: str) -> bool:
    if entry.startswith("re:"):
        try:
            return re.match(entry.removeprefix("re:"), module) is not None
        except re.error as error:
            raise CorruptCheckpointError(
                "config.json: quantization_config has a pattern that cannot be read", found=f"{entry}: {error}"
            ) from error
    return f".{entry}." in f".{module}."
