"""One model's packed weights in one file, in the order in which a load asks for them.

First the weights, each from a line of the caches on. Then an index in JSON: its key, the weights, and SHA-256 of each
16 MiB of what is before it. At the end 48 bytes: the index's length as a little-endian uint64, its SHA-256, and the
magic.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.json_file import parse_json_object
from pipezoo_core.native import aligned, aligned_bytes

__all__ = ["PackedFile", "PackedFileWriter", "StaleEntryError"]

_MAGIC = b"pipezoo1"
_END = struct.Struct("<Q32s8s")
_CHUNK = 16 << 20
_MAX_INDEX = 64 << 20
_NUM_THREADS = 4  # reading and hashing leave the interpreter's lock


BufferT = TypeVar("BufferT", bytearray, memoryview)


class StaleEntryError(Exception):
    """An entry of the cache is damaged, or of another load than its key says. No caller of a load sees it."""


class PackedFileWriter:
    """Writes the weights that a load packs, one after the other.

    Args:
        file: empty, and open for writing without a buffer.
        key: of the load.
        max_bytes: most bytes of the file.
    """

    def __init__(self, file: FileIO, key: str, max_bytes: int) -> None:
        self._file, self._key, self._max_bytes = file, key, max_bytes
        self._weights: list[tuple[str, int, int]] = []
        self._chunks: list[str] = []
        self._hash, self._in_chunk, self._size = hashlib.sha256(), 0, 0
        self.failure: str | None = None
        """Why the file is not whole; None while it is."""

    def take(self, name: str, size: int) -> Tensor | None:
        """Has nothing: every weight is packed."""
        del name, size
        return None

    def add(self, name: str, packed: Tensor) -> None:
        """Writes a weight. Once that has failed, it does nothing: the load goes on."""
        start = aligned(self._size)
        if self.failure is not None or not self._has_room(start + packed.nbytes):
            return
        try:
            self._write(memoryview(bytes(start - self._size)))
            self._write(packed.numpy().data)
        except OSError as error:
            self._fail(str(error))
        self._weights.append((name, start, packed.nbytes))

    def finish(self) -> None:
        """Writes what stands behind the weights, unless something has failed."""
        if self.failure is not None:
            return
        if self._in_chunk:
            self._end_chunk()
        found = {"key": self._key, "weights": self._weights, "chunks": self._chunks}
        index = json.dumps(found).encode()
        rest = memoryview(index + _END.pack(len(index), hashlib.sha256(index).digest(), _MAGIC))
        if not self._has_room(self._size + len(rest)):
            return
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._fail(str(error))

    def _has_room(self, size: int) -> bool:
        if size > self._max_bytes:
            self._fail(f"its packed weights take more than load_cache_size gives each rank ({self._max_bytes} bytes)")
        return size <= self._max_bytes

    def _fail(self, reason: str) -> None:
        """Keeps nothing, and gives back at once what it has taken of the disk: the load may take long yet."""
        self.failure = reason
        with suppress(OSError):
            self._file.truncate(0)

    def _write(self, data: memoryview) -> None:
        while data:
            part = data[: self._file.write(data[: _CHUNK - self._in_chunk])]  # which may not take all
            data = data[len(part) :]
            self._hash.update(part)
            self._size += len(part)
            self._in_chunk += len(part)
            if self._in_chunk == _CHUNK:
                self._end_chunk()

    def _end_chunk(self) -> None:
        self._chunks.append(self._hash.hexdigest())
        self._hash, self._in_chunk = hashlib.sha256(), 0


class PackedFile:
    """The weights of such a file, read and checked, in memory like that of weights that were packed just now.

    Args:
        path: of the file.
        key: that it was written for.

    Raises:
        StaleEntryError: it is damaged, or of another key.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, key: str) -> None:
        if path.exists() and not path.is_file():  # to open a pipe waits for who writes to it
            raise OSError("it is no file")
        with path.open("rb", buffering=0) as file:
            index, num_bytes = _read_index(file)
            if index["key"] != key:
                raise StaleEntryError("it is of another load")
            self._data = torch.from_numpy(_read_weights(file, index, num_bytes))
        self._weights: Iterator[tuple[str, int, int]] = iter(index["weights"])

    def take(self, name: str, size: int) -> Tensor:
        """Returns the next weight.

        Raises:
            StaleEntryError: that is another one.
        """
        found, start, num_bytes = next(self._weights, ("nothing", 0, 0))
        if (found, num_bytes) != (name, size):
            raise StaleEntryError(f"it has {found} of {num_bytes} bytes where {name} of {size} is wanted")
        return self._data[start : start + size]

    def add(self, name: str, packed: Tensor) -> None:
        """Is not called: `take` has all."""

    def check_end(self) -> None:
        """Checks that nothing is left.

        Raises:
            StaleEntryError: something is.
        """
        if (left := next(self._weights, None)) is not None:
            raise StaleEntryError(f"it has {left[0]}, which nobody wants")


def _read_index(file: FileIO) -> tuple[dict[str, Any], int]:
    """Returns the index, and how many bytes of weights are before it."""
    size = file.seek(0, os.SEEK_END)
    if size < _END.size:
        raise StaleEntryError(f"it has {size} bytes")
    length, digest, magic = _END.unpack(_read(file, size - _END.size, bytearray(_END.size)))
    num_bytes = size - _END.size - length
    if magic != _MAGIC or num_bytes < 0 or length > _MAX_INDEX:
        raise StaleEntryError("its end is not that of packed weights")
    data = bytes(_read(file, num_bytes, bytearray(length)))
    if hashlib.sha256(data).digest() != digest:
        raise StaleEntryError("its index has another hash")
    try:
        index = parse_json_object(data, "its index")
    except CorruptCheckpointError as error:
        raise StaleEntryError(str(error)) from error
    if not _is_of(index, num_bytes):
        raise StaleEntryError("its index is of another form or length")
    return index, num_bytes


def _is_of(index: dict[str, Any], num_bytes: int) -> bool:
    """Whether an index is one, of so many bytes of weights."""
    weights, chunks = index.get("weights"), index.get("chunks")
    if not (isinstance(weights, list) and isinstance(chunks, list) and isinstance(index.get("key"), str)):
        return False
    return len(chunks) == -(-num_bytes // _CHUNK) and all(_is_within(weight, num_bytes) for weight in weights)


def _is_within(weight: object, num_bytes: int) -> bool:
    if not isinstance(weight, list) or len(weight) != 3:
        return False
    name, start, size = weight
    if not (isinstance(name, str) and type(start) is type(size) is int):
        return False
    return 0 <= start <= start + size <= num_bytes


def _read_weights(file: FileIO, index: dict[str, Any], num_bytes: int) -> np.ndarray:
    """Returns the bytes of all weights; while some are read, those before are hashed."""
    data = aligned_bytes(num_bytes)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        hashes = []
        for start in range(0, len(data), _CHUNK):
            part = data[start : start + _CHUNK]
            _read(file, start, part.data)
            hashes.append(pool.submit(hashlib.sha256, part.data))
        for number, (future, wanted) in enumerate(zip(hashes, index["chunks"], strict=True)):
            if future.result().hexdigest() != wanted:
                raise StaleEntryError(f"piece {number} of {len(hashes)} has another hash")
    return data


def _read(file: FileIO, start: int, target: BufferT) -> BufferT:
    """Fills memory with what begins at a byte of a file."""
    file.seek(start)
    rest = memoryview(target)
    while rest:
        if not (count := file.readinto(rest)):
            raise StaleEntryError("it became shorter while it was read")
        rest = rest[count:]
    return target
