"""A folder of packed weights, bounded in size: what was not used for longest goes first."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipezoo_core.weights.load_cache.atomic import TEMPORARY
from pipezoo_core.weights.load_cache.content import FileContent
from pipezoo_core.weights.load_cache.packed_file import PackedFile, PackedFileWriter, StaleEntryError

__all__ = ["CacheEntry", "LoadCache"]

_LOGGER = logging.getLogger("pipezoo")
_ENDING = ".packed"
_FORMAT = 1  # of the files, and of what a load packs in which order
_ABANDONED = 24 * 3600  # seconds after which a file that is being written has no writer any more


class LoadCache:
    """Packed weights of any number of models. Processes may share one: a file is there whole or not at all.

    Args:
        folder: where the files are; made when something is written.
        max_bytes: of all of them.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    def entry(
        self, identity: Mapping[str, Any], files: Sequence[FileContent] = (), *, num_ranks: int = 1
    ) -> CacheEntry:
        """Returns what is, or will be, kept of a load.

        Args:
            identity: all else that decides what is packed, as JSON has it.
            files: that it is made of. Nothing is kept of a load during which one of them changes.
            num_ranks: how many load a part each; they share what the folder may hold.
        """
        found = {"format": _FORMAT, "files": [file.sha256 for file in files], **identity}
        text = json.dumps(found, sort_keys=True, default=str)
        return CacheEntry(self, hashlib.sha256(text.encode()).hexdigest(), self._max_bytes // num_ranks, files)

    def trim(self, keep: Path) -> None:
        """Removes files until the others are within bounds, and those whose writers are gone.

        Args:
            keep: what was written just now; it stays, whatever the clock says of it.
        """
        with suppress(OSError):
            now = time.time()
            for path in self.folder.glob(f"*{TEMPORARY}"):
                if now - path.stat().st_mtime > _ABANDONED:
                    path.unlink(missing_ok=True)
            found = [(path.stat(), path) for path in self.folder.glob(f"*{_ENDING}")]
            rest = sum(stat.st_size for stat, _ in found)
            for stat, path in sorted(found, key=lambda each: each[0].st_mtime_ns):
                if rest <= self._max_bytes:
                    break
                if path == keep:
                    continue
                path.unlink(missing_ok=True)
                rest -= stat.st_size


class CacheEntry:
    """What is kept of one load: see `LoadCache.entry`."""

    def __init__(self, cache: LoadCache, key: str, max_bytes: int, files: Sequence[FileContent]) -> None:
        self._cache, self._key, self._max_bytes, self._files = cache, key, max_bytes, files
        self._path = cache.folder / f"{key}{_ENDING}"

    def read(self) -> PackedFile | None:
        """Returns the weights, checked; None where there are none.

        What is damaged is removed, with a line of the log. What cannot be read has the line, and stays.
        """
        try:
            found = PackedFile(self._path, self._key)
        except FileNotFoundError:
            return None
        except StaleEntryError as error:
            self.drop(error)
            return None
        except OSError as error:
            _LOGGER.warning("packed weights in %s are not used: %s", self._path, error)
            return None
        with suppress(OSError):  # of a folder that others may only read
            os.utime(self._path)  # used last
        _LOGGER.info("packed weights are taken from %s", self._path)
        return found

    def drop(self, reason: object) -> None:
        """Removes the weights, with a line of the log."""
        text = str(reason)  # a record that somebody keeps would hold an error's frames, and what these hold
        _LOGGER.warning("packed weights in %s are not used, and removed: %s", self._path, text)
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    @contextmanager
    def written(self) -> Iterator[PackedFileWriter | None]:
        """Gives what writes the weights that are packed inside; they are there when that is done.

        Where they cannot be written the log has a line, and nothing else is different. What is raised inside leaves
        nothing behind.
        """
        folder = self._cache.folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=folder, suffix=TEMPORARY)
        except OSError as error:
            self._log_failure(error)
            yield None
            return
        try:
            with os.fdopen(handle, "wb", buffering=0) as file:
                writer = PackedFileWriter(file, self._key, self._max_bytes)
                yield writer
                self._finish(writer, Path(name))
        finally:
            with suppress(OSError):
                Path(name).unlink(missing_ok=True)

    def _finish(self, writer: PackedFileWriter, path: Path) -> None:
        writer.finish()
        if changed := [str(file.path) for file in self._files if not file.is_still_there()]:
            writer.failure = f"files changed while the model was loaded: {', '.join(changed)}"
        try:
            if writer.failure is None:
                path.replace(self._path)
                self._cache.trim(keep=self._path)
        except OSError as error:
            writer.failure = str(error)
        if writer.failure is None:
            _LOGGER.info("packed weights are kept in %s", self._path)
        else:
            self._log_failure(writer.failure)

    def _log_failure(self, reason: object) -> None:
        _LOGGER.warning("packed weights are not kept in %s: %s", self._cache.folder, reason)
