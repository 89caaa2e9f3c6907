"""Safetensors checkpoints: one file, or shards with an index."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipezoo_core.config import WeightsFormat
from pipezoo_core.errors import (
    CorruptCheckpointError,
    MissingShardError,
    ModelNotFoundError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)
from pipezoo_core.json_file import read_json_object
from pipezoo_core.weights.base import LazyTensor, Weights
from pipezoo_core.weights.reading import read_bytes

__all__ = ["find_safetensors", "open_safetensors"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_INDEX_BYTES = 32 << 20  # an index of 150,000 tensors takes half of it
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def find_safetensors(folder: Path) -> tuple[Path, ...]:
    """Returns the weight files of a checkpoint folder.

    Raises:
        UnsafeCheckpointError: there are only pickle files, or the index names a file outside the folder.
        MissingShardError: the index names a file that is not there.
        ModelNotFoundError: there are no weights at all.
        CorruptCheckpointError: the index is not what it should be.
    """
    if (folder / _INDEX).is_file():
        return _shards(folder)
    if (folder / _SINGLE).is_file():
        return (folder / _SINGLE,)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UnsafeCheckpointError(
            f"{folder} holds only pickle weights, which can run code when loaded",
            found=pickles,
            allowed="safetensors or GGUF",
            cure="Convert the checkpoint to safetensors, or take a revision that has them.",
        )
    raise ModelNotFoundError(f"{folder} holds no weights", allowed=f"{_SINGLE}, or {_INDEX} and its shards")


def _shards(folder: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(read_json_object(folder / _INDEX, _MAX_INDEX_BYTES)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(
            f"{folder / _INDEX} is not an index of shards", cure="Download the file again."
        ) from error
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise UnsafeCheckpointError(f"{folder / _INDEX} names files outside its folder", found=outside)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise MissingShardError(
            f"shards of the checkpoint {folder} are missing", found=missing, cure="Download the checkpoint again."
        )
    return tuple(folder / name for name in names)


def open_safetensors(paths: Sequence[Path]) -> Weights:
    """Reads the files' headers.

    Raises:
        CorruptCheckpointError: a file is truncated or its header is damaged.
        UnsupportedCheckpointError: a tensor is not of a floating-point dtype.
    """
    tensors: dict[str, LazyTensor] = {}
    for path in paths:
        header, start = _header(path)
        for name, entry in header.items():
            dtype = _DTYPES.get(entry["dtype"])
            if dtype is None:
                raise UnsupportedCheckpointError(
                    f"{path}: tensor {name!r} has an unsupported dtype",
                    found=entry["dtype"],
                    allowed=sorted(_DTYPES),
                    cure="Quantized safetensors are not read; take the unquantized checkpoint or a GGUF file.",
                )
            shape = tuple(entry["shape"]) or (1,)
            read = _row_reader(path, start + entry["data_offsets"][0], shape, dtype)
            tensors[name] = LazyTensor(shape, dtype, read)
    return Weights(WeightsFormat.safetensors, tensors)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Returns the entries of a file's header, which the library has found sound, and where the data begins."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpointError(
            f"{path} is not a whole safetensors file", found=error, cure="Download the file again."
        ) from error
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def _row_reader(path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[slice], Tensor]:
    row_bytes = torch.Size(shape[1:]).numel() * dtype.itemsize

    def read(rows: slice) -> Tensor:
        data = read_bytes(path, offset + rows.start * row_bytes, (rows.stop - rows.start) * row_bytes)
        return torch.from_numpy(data).view(dtype).view(-1, *shape[1:])

    return read
