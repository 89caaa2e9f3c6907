"""Small files that are there whole or not at all. Where they cannot be written, they are not there."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["TEMPORARY", "write_atomically"]

TEMPORARY = ".part"
"""What the names of files end with that are being written."""


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file that is worth nothing where it cannot be written."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=TEMPORARY)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
