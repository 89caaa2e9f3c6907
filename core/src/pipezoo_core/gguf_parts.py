"""The names of the parts of one GGUF model that is split over several files, as llama.cpp's gguf-split names them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipezoo_core.errors import MissingShardError

__all__ = ["part_names", "parts_of_one_model"]

_PART = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.DOTALL)


def part_names(name: str) -> list[str]:
    """Returns the names of all parts of the model that a file is a part of, the file's alone where it is none.

    `m-00002-of-00002.gguf` leads to itself and `m-00001-of-00002.gguf` before it.
    """
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return [name]
    return [f"{match[1]}{number:05}-of-{match[3]}{match[4]}" for number in range(1, int(match[3]) + 1)]


def parts_of_one_model(names: Sequence[str]) -> list[str] | None:
    """Returns the names in order, if all of them are parts of one model; a single file is a part of itself.

    Raises:
        MissingShardError: they are, and others are missing.
    """
    parts = part_names(names[0])
    if not set(names) <= set(parts):
        return None
    if missing := sorted(set(parts) - set(names)):
        raise MissingShardError(
            "parts of a split GGUF model are missing", found=missing, cure="Download them to the folder of the others."
        )
    return parts
