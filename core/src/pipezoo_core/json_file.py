"""Reads small JSON that others wrote. Knows no keys.

Bounded, because a few megabytes of brackets become gigabytes of lists, and nesting that is too deep ends the parser.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.local_file import readable

__all__ = ["MAX_JSON_BYTES", "parse_json_object", "read_json_object"]

MAX_JSON_BYTES = 8 << 20
"""Far above any honest config."""

_MAX_CONTAINERS = 2**20  # objects and lists: the header of 300,000 tensors


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Returns the JSON object that a file holds; of a larger one no more than `max_bytes` and one are read.

    Raises:
        UnreadableFileError: the file cannot be read.
        CorruptCheckpointError: the file is larger than `max_bytes`, or not what `parse_json_object` takes.
    """
    with readable(path), path.open("rb") as file:
        text = file.read(max_bytes + 1)
    if len(text) > max_bytes:
        raise CorruptCheckpointError(f"{path} is too large to be read as JSON", allowed=f"at most {max_bytes} bytes")
    return parse_json_object(text, str(path))


def parse_json_object(text: bytes, name: str) -> dict[str, Any]:
    """Returns the object that a JSON text is.

    Args:
        text: in UTF-8, UTF-16 or UTF-32.
        name: what to call it in an error.

    Raises:
        CorruptCheckpointError: it is not JSON, or no object, or nests too deeply or too much, or says a key twice.
    """
    if text.count(b"{") + text.count(b"[") > _MAX_CONTAINERS:
        raise CorruptCheckpointError(f"{name} has too many objects and lists", allowed=f"at most {_MAX_CONTAINERS}")
    try:
        found = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{name} is not JSON", found=error, cure="Download the file again.") from error
    if not isinstance(found, dict):
        raise CorruptCheckpointError(f"{name} is not a JSON object", found=type(found).__name__)
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a dict; which of two values of a key was meant, nobody knows."""
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r:.80} is there twice")
    return found
