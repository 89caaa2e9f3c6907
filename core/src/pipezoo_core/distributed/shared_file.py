"""Memory that several processes of one host map, and that leaves nothing behind."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

__all__ = ["SharedFile", "map_shared_file"]


class SharedFile:
    """A file that other processes of this host and user open by its path while this one keeps it open.

    On Linux it has no name in any folder, and its path leads through this process: whatever ends the process, the
    memory is free as soon as nobody maps it any more. Elsewhere it has a name until it is closed.

    Args:
        size: in bytes; it begins with that many zeros.

    Raises:
        OSError: the system has no memory left, or none for us.
    """

    def __init__(self, size: int = 0) -> None:
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("pipezoo")
            self.path = Path(f"/proc/{os.getpid()}/fd/{self._file}")
        else:
            self._file, name = tempfile.mkstemp(prefix="pipezoo-")
            self.path = Path(name)
        try:
            if size:
                os.posix_fallocate(self._file, 0, size)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Takes the path away; who has mapped the file keeps its memory. More than once does nothing."""
        file, self._file = self._file, -1
        if file < 0:
            return
        os.close(file)
        if not hasattr(os, "memfd_create"):
            self.path.unlink(missing_ok=True)


def map_shared_file(path: Path) -> mmap.mmap:
    """Maps a whole file, to read and to write.

    Raises:
        OSError: there is none, or it cannot be opened from here.
    """
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)
