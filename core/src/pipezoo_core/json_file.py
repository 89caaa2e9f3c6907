"""Reads a small JSON file that others wrote. Knows no keys.

Bounded, because a few megabytes of brackets become gigabytes of lists, and nesting that is too deep ends the parser.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipezoo_core.errors import CorruptCheckpointError

__all__ = ["MAX_JSON_BYTES", "read_json_object"]

MAX_JSON_BYTES = 8 << 20
"""Far above any honest config."""


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Returns the JSON object that a file holds; of a larger one no more than `max_bytes` and one are read.

    Raises:
        CorruptCheckpointError: the file is larger than `max_bytes`, is not JSON, or is not an object.
    """
    with path.open("rb") as file:
        text = file.read(max_bytes + 1)
    if len(text) > max_bytes:
        raise CorruptCheckpointError(f"{path} is too large to be read as JSON", allowed=f"at most {max_bytes} bytes")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path} is not JSON", found=error, cure="Download the file again.") from error
    if not isinstance(found, dict):
        raise CorruptCheckpointError(f"{path} is not a JSON object", found=type(found).__name__)
    return found
