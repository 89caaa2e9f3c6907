"""The entries of a config.json's `quantization_config`, typed; and what is said where they ask for too much."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Annotated, Any, TypeAlias, TypeVar

import regex
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipezoo_core.config_entries import NUMBER
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedCheckpointError, shown

__all__ = ["Entries", "Size", "entry_naming", "not_read", "parsed"]

Size: TypeAlias = Annotated[int, NUMBER, Field(ge=-1, le=2**31 - 1)]
"""Numbers of a group or a block, where -1 is all of them."""

_MAX_SHOWN = 500
_MAX_LENGTH = 1000  # of a pattern, which bounds what it takes to compile it
_MAX_SECONDS = 1.0  # to match a pattern with a name, of which real ones take microseconds


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
    if not entry.startswith("re:"):
        return f".{entry}." in f".{module}."
    try:
        return _compiled(entry.removeprefix("re:")).match(module, timeout=_MAX_SECONDS) is not None
    except TimeoutError as error:
        raise _too_involved(entry) from error


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> regex.Pattern[str]:
    if len(pattern) > _MAX_LENGTH:
        raise _too_involved(pattern)
    try:
        return regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise CorruptCheckpointError(
            "config.json: quantization_config has a pattern that cannot be read", found=f"{shown(pattern)}: {error}"
        ) from error


def _too_involved(pattern: str) -> UnsupportedCheckpointError:
    return UnsupportedCheckpointError(
        "config.json: quantization_config has a pattern that is too involved",
        found=shown(pattern),
        allowed=f"{_MAX_LENGTH} characters, and {_MAX_SECONDS:g} seconds to match it with the name of a module",
        cure="Write it without alternatives and repetitions that match the same text in many ways.",
    )
