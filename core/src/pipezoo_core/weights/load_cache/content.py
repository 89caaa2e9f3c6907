"""What files hold, as SHA-256, without reading them again at every start."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from pipezoo_core.local_file import readable
from pipezoo_core.weights.load_cache.atomic import write_atomically

__all__ = ["FileContent", "file_content"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SETTLED = 2 * 10**9  # nanoseconds without a change: clocks of file systems can be so coarse
_ENDING = ".hash"


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a file held when it was looked at.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        state: all that the system changes when somebody writes to it: device, inode, size, and the times of the last
            change of content and of anything. The latter no program can set.
        is_settled: whether it was not changed within two seconds before, after which a second change could leave the
            same times.
    """

    path: Path
    sha256: str
    state: list[int]
    is_settled: bool

    def is_still_there(self) -> bool:
        """Whether the file holds the same yet. One that was not settled is read again."""
        try:
            return _state(self.path) == self.state and (self.is_settled or _digest(self.path) == self.sha256)
        except OSError:
            return False


def file_content(path: Path, notes: Path) -> FileContent:
    """Returns what a file holds. The hash of one that is settled is noted, with its state, and not made again.

    Names are not believed, those of the Hub's cache neither: who changes a file there does not rename it.

    Args:
        path: of the file.
        notes: the folder of the notes; where it cannot be written, files are read each time.

    Raises:
        UnreadableFileError: it cannot be read.
    """
    with readable(path):
        real = path.resolve(strict=True)
        note = notes / (hashlib.sha256(os.fsencode(real)).hexdigest() + _ENDING)
        before = _state(real)
        if (known := _noted(note, before)) is not None:
            return FileContent(path, known, before, is_settled=True)
        now = time.time_ns()
        digest = _digest(real)
        is_settled = now - max(before[-2:]) > _SETTLED and _state(real) == before
    if is_settled:
        write_atomically(note, json.dumps({"path": str(real), "state": before, "sha256": digest}).encode())
    return FileContent(path, digest, before, is_settled)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _noted(note: Path, state: list[int]) -> str | None:
    try:
        found = json.loads(note.read_bytes())
        digest = found["sha256"] if found["state"] == state else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return digest if isinstance(digest, str) and _SHA256.fullmatch(digest) else None
