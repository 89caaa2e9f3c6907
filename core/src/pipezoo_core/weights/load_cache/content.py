"""What files hold, as SHA-256, without reading them again at every start."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from pipezoo_core.local_file import readable
from pipezoo_core.weights.load_cache.atomic import write_atomically

__all__ = ["content_hashes"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SETTLED = 2 * 10**9  # nanoseconds without a change: clocks of file systems can be so coarse
_ENDING = ".hash"


def content_hashes(paths: Sequence[Path], notes: Path) -> list[str]:
    """Returns the SHA-256 of each file.

    The Hub's cache names large files by it. Of others it is noted, with all that the system changes when somebody
    writes to a file: device, inode, size, and the times of the last change of content and of anything. The latter no
    program can set. A file that was changed within two seconds before it is read is not noted, since a second change
    could leave the same times.

    Args:
        paths: the files.
        notes: the folder of the notes; where it cannot be written, files are read each time.

    Raises:
        UnreadableFileError: a file cannot be read.
    """
    return [_content_hash(path, notes) for path in paths]


def _content_hash(path: Path, notes: Path) -> str:
    with readable(path):
        real = path.resolve(strict=True)
        if real.parent.name == "blobs" and path.is_symlink() and _SHA256.fullmatch(real.name):
            return real.name
        note = notes / (hashlib.sha256(os.fsencode(real)).hexdigest() + _ENDING)
        before = _state(real)
        if (known := _noted(note, before)) is not None:
            return known
        now = time.time_ns()
        with real.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        is_settled = now - max(before[-2:]) > _SETTLED and _state(real) == before
    if is_settled:
        write_atomically(note, json.dumps({"path": str(real), "state": before, "sha256": digest}).encode())
    return digest


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
