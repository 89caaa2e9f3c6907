"""Reads a range of a file's bytes.

Into memory of its own, and not through a memory map: the pages of a map count as memory of the process until it is
closed, a second copy of the weights beside the first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.local_file import readable

__all__ = ["read_bytes"]


def read_bytes(path: Path, offset: int, size: int) -> np.ndarray:
    """Returns `size` bytes from `offset` on, as uint8.

    Raises:
        CorruptCheckpointError: the file ends before.
        UnreadableFileError: it cannot be read.
    """
    data = np.empty(size, dtype=np.uint8)
    with readable(path), path.open("rb", buffering=0) as file:
        file.seek(offset)
        num_read = 0
        while num_read < size:
            taken = file.readinto(data[num_read:].data)
            if not taken:
                raise CorruptCheckpointError(
                    f"{path} became shorter while it was read",
                    found=f"{offset + num_read} bytes",
                    allowed=f"at least {offset + size}",
                    cure="Load the model again when nothing writes the file.",
                )
            num_read += taken
    return data
