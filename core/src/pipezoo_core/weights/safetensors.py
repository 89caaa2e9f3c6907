"""Safetensors checkpoints: one file, or shards with an index."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from pipezoo_core.config import WeightsFormat
from pipezoo_core.errors import (
    CorruptCheckpointError,
    MissingShardError,
    ModelNotFoundError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from pipezoo_core.file_names import WEIGHTS, WEIGHTS_INDEX, pickles_in
from pipezoo_core.json_file import parse_json_object, read_json_object
from pipezoo_core.local_file import readable
from pipezoo_core.weights.base import LazyTensor, Weights
from pipezoo_core.weights.reading import read_bytes

__all__ = ["find_safetensors", "open_safetensors", "safetensors_names"]

_MAX_HEADER_BYTES = 32 << 20  # of a header or an index; an index of 150,000 tensors takes half of it
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_AGAIN = "Download the file again."


def find_safetensors(folder: Path) -> tuple[Path, ...]:
    """Returns the weight files of a checkpoint folder.

    Raises:
        UnsafeCheckpointError: there are only pickle files, or the index names a file outside the folder.
        MissingShardError: the index names a file that is not there.
        ModelNotFoundError: there are no weights at all.
        CorruptCheckpointError: the index is not what it should be.
        UnreadableFileError: the folder or the index cannot be read.
    """
    with readable(folder):
        names = safetensors_names(folder)
        missing = [name for name in names if not (folder / name).is_file()]
        pickles = pickles_in(folder)
    if missing:
        raise MissingShardError(
            f"shards of the checkpoint {folder} are missing, which its {WEIGHTS_INDEX} names",
            found=missing,
            cure="Download the checkpoint again.",
        )
    if names:
        return tuple(folder / name for name in names)
    if pickles:
        raise UnsafeCheckpointError(
            f"{folder} holds only pickle weights, which can run code when loaded",
            found=pickles,
            allowed="safetensors or GGUF",
            cure="Convert the checkpoint to safetensors, or take a revision that has them.",
        )
    raise ModelNotFoundError(f"{folder} holds no weights", allowed=f"{WEIGHTS}, or {WEIGHTS_INDEX} and its shards")


def safetensors_names(folder: Path) -> tuple[str, ...]:
    """Returns the names of the weight files of a folder, whether they are there or not; none where it has no weights.

    The files are those that the index names. A whole file that the index does not name goes before it, as in
    transformers: the index is of an earlier time.

    Raises:
        UnsafeCheckpointError, CorruptCheckpointError: as `find_safetensors`.
    """
    whole = (WEIGHTS,) if (folder / WEIGHTS).is_file() else ()
    if not (folder / WEIGHTS_INDEX).is_file():
        return whole
    names = tuple(sorted(set(_places(folder).values())))
    return names if WEIGHTS in names or not whole else whole


def _places(folder: Path) -> dict[str, str]:
    """Returns which tensor is in which file, by the index of a folder."""
    places = read_json_object(folder / WEIGHTS_INDEX, _MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CorruptCheckpointError(f"{folder / WEIGHTS_INDEX} is not an index of shards", cure=_AGAIN)
    outside = [name for name in places.values() if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise UnsafeCheckpointError(f"{folder / WEIGHTS_INDEX} names files outside its folder", found=outside)
    if others := sorted({name for name in places.values() if not name.endswith(".safetensors")}):
        raise UnsafeCheckpointError(f"{folder / WEIGHTS_INDEX} names files that are no safetensors", found=others)
    return places


def open_safetensors(paths: Sequence[Path]) -> Weights:
    """Reads the files' headers.

    Where an index lies beside the files and names all of them, it decides which tensors belong to the checkpoint, and
    in which file they are; what a file holds besides is passed over.

    Raises:
        CorruptCheckpointError: a file is truncated or its header is damaged, a tensor is there twice, or not where the
            index says.
        UnsupportedCheckpointError: a tensor is of a dtype that is not read, as those of quantized weights.
        UnreadableFileError: a file cannot be read.
    """
    places = _index_of(paths)
    tensors: dict[str, LazyTensor] = {}
    for path in paths:
        for name, tensor in _tensors(path):
            if places is not None and places.get(name) != path.name:
                continue
            if name in tensors:
                raise CorruptCheckpointError(f"{path}: tensor {name!r} is in another file, too", cure=_AGAIN)
            tensors[name] = tensor
    if places is not None and (missing := places.keys() - tensors.keys()):
        raise CorruptCheckpointError(
            f"tensors are not in the files where {paths[0].parent / WEIGHTS_INDEX} says",
            found=sorted(missing),
            cure="Download the checkpoint again.",
        )
    return Weights(WeightsFormat.safetensors, tensors)


def _index_of(paths: Sequence[Path]) -> dict[str, str] | None:
    folder = paths[0].parent
    with readable(folder):
        if not (folder / WEIGHTS_INDEX).is_file():
            return None
    places = _places(folder)
    return places if {path.name for path in paths} == set(places.values()) else None


def _tensors(path: Path) -> list[tuple[str, LazyTensor]]:
    """Returns a file's tensors, in the order of their bytes, which must be all of the file's."""
    header, start, size = _header(path)
    tensors = []
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(path, *item)):
        dtype, shape = _dtype_and_shape(path, name, entry)
        first, last = entry["data_offsets"]
        if first != end or last - first != math.prod(shape) * dtype.itemsize:
            raise _damaged(path, f"tensor {name!r} of shape {shape} is said to be in bytes {first} to {last}")
        end = last
        read = _row_reader(path, start + first, shape or (1,), dtype)
        read_vectors = _row_reader(path, start + first, (-1, *shape[-1:]), dtype)
        tensors.append((name, LazyTensor(shape or (1,), dtype, read, read_vectors)))
    if start + end != size:
        raise _damaged(path, f"{size} bytes instead of {start + end}")
    return tensors


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Returns the entries of a file's header, where the data begins, and the file's size."""
    with readable(path), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= size - 8:
            raise _damaged(path, f"{size} bytes, a header of {length}")
        if length > _MAX_HEADER_BYTES:
            raise _damaged(path, f"a header of {length} bytes; at most {_MAX_HEADER_BYTES} are read")
        text = file.read(length)
    if len(text) < length:
        raise _damaged(path, "it became shorter while it was read")
    try:
        header = parse_json_object(text, "its header")
    except CorruptCheckpointError as error:
        raise _damaged(path, error) from error
    header.pop("__metadata__", None)
    return header, 8 + length, size


def _offsets(path: Path, name: str, entry: object) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, Mapping) else None
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _damaged(path, f"tensor {name!r} has no data_offsets")
    return offsets[0], offsets[1]


def _dtype_and_shape(path: Path, name: str, entry: Mapping[str, Any]) -> tuple[torch.dtype, tuple[int, ...]]:
    found, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(found, str) or not _are_sizes(shape):
        raise _damaged(path, f"tensor {name!r} has no dtype and shape")
    if found not in _DTYPES:
        raise UnsupportedCheckpointError(
            f"{path}: tensor {name!r} has an unsupported dtype",
            found=found,
            allowed=sorted(_DTYPES),
            cure="Safetensors of this kind are not read; take the unquantized checkpoint or a GGUF file.",
        )
    return _DTYPES[found], tuple(shape)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _damaged(path: Path, found: object) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"{path} is not a whole safetensors file", found=found, cure=_AGAIN)


def _row_reader(path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[slice], Tensor]:
    row_bytes = math.prod(shape[1:]) * dtype.itemsize

    def read(rows: slice) -> Tensor:
        data = read_bytes(path, offset + rows.start * row_bytes, (rows.stop - rows.start) * row_bytes)
        return torch.from_numpy(data).view(dtype).view(-1, *shape[1:])

    return read
