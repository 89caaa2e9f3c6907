"""GGUF files: header, metadata and tensors, read once.

The layout is that of the GGUF specification (version 2 and 3, little-endian): magic, version, number of tensors,
number of metadata entries, the entries, the tensors' infos, and the tensors' data from an aligned offset on. The
`gguf` package knows the quantized types and how to dequantize them; its reader is not used, because it makes several
array views per string and takes seconds for a vocabulary of 49,152 tokens.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from pipezoo_core.config import WeightsFormat
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedCheckpointError
from pipezoo_core.weights.base import LazyTensor, Weights
from pipezoo_core.weights.reading import read_bytes

__all__ = ["GGUFFile", "open_gguf"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
_PLAIN = {
    GGMLQuantizationType.F64: torch.float64,
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """An opened GGUF file.

    Attributes:
        metadata: key -> value, e.g. `llama.block_count` -> 30.
        weights: the tensors under their GGUF names, in torch's order of dimensions.
    """

    metadata: dict[str, Any]
    weights: Weights


def open_gguf(path: Path) -> GGUFFile:
    """Reads the header of a GGUF file.

    Raises:
        CorruptCheckpointError: the file is truncated, or not a GGUF file.
        UnsupportedCheckpointError: it is of another version or byte order, or has a type that cannot be dequantized.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path).read()
    except (struct.error, ValueError, LookupError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"{path} is not a whole GGUF file", found=error, cure="Download the file again."
        ) from error


class _Reader:
    """Walks over a mapped file once, front to back."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0

    def read(self) -> GGUFFile:
        if self._take(4) != _MAGIC:
            raise ValueError("it does not begin with 'GGUF'")
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise UnsupportedCheckpointError(
                f"{self._path} is of an unsupported GGUF version", found=version, allowed=_VERSIONS
            )
        num_tensors, num_entries = self._scalar("Q"), self._scalar("Q")
        metadata = {}
        for _ in range(num_entries):
            key = self._string()
            metadata[key] = self._value(self._scalar("I"))
        infos = [self._tensor_info() for _ in range(num_tensors)]
        alignment = _checked_alignment(metadata.get("general.alignment", 32))
        start = -(-self._at // alignment) * alignment
        tensors = {name: self._tensor(name, dims, type_, start + offset) for name, dims, type_, offset in infos}
        is_quantized = any(type_ not in _PLAIN for _, _, type_, _ in infos)
        return GGUFFile(metadata, Weights(WeightsFormat.gguf, tensors, is_quantized=is_quantized))

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise ValueError(f"it ends after {len(self._data)} bytes, within its header")
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def _scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _string(self) -> str:
        # Byte-level vocabularies hold pieces of characters only in their printable form, but some files do not.
        return self._take(self._scalar("Q")).decode("utf-8", errors="replace")

    def _value(self, type_: int) -> Any:
        if type_ in _SCALARS:
            return self._scalar(_SCALARS[type_])
        if type_ == _STRING:
            return self._string()
        if type_ == _ARRAY:
            item_type, count = self._scalar("I"), self._scalar("Q")
            if item_type in _SCALARS:
                code = f"<{count}{_SCALARS[item_type]}"
                return list(struct.unpack(code, self._take(struct.calcsize(code))))
            return [self._value(item_type) for _ in range(count)]
        raise ValueError(f"unknown type {type_} of a metadata value")

    def _tensor_info(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name, num_dims = self._string(), self._scalar("I")
        if num_dims > _MAX_DIMS:
            raise ValueError(f"tensor {name!r} has {num_dims} dimensions")
        dims = tuple(self._scalar("Q") for _ in range(num_dims))
        return name, dims[::-1], GGMLQuantizationType(self._scalar("I")), self._scalar("Q")

    def _tensor(self, name: str, shape: tuple[int, ...], type_: GGMLQuantizationType, offset: int) -> LazyTensor:
        block_size, type_size = GGML_QUANT_SIZES[type_]
        if len(shape) < min(block_size, 2) or 0 in shape or shape[-1] % block_size:
            raise ValueError(f"tensor {name!r} of shape {list(shape)} has no whole rows of {block_size} numbers")
        num_bytes = math.prod(shape) // block_size * type_size
        if offset + num_bytes > len(self._data):
            raise ValueError(f"tensor {name!r} ends at byte {offset + num_bytes} of {len(self._data)}")
        read = _row_reader(self._path, name, offset, shape, type_)
        return LazyTensor(shape, _PLAIN.get(type_, torch.float32), read)


def _checked_alignment(value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"general.alignment is {value!r:.80}")
    return value


def _row_reader(
    path: Path, name: str, offset: int, shape: tuple[int, ...], type_: GGMLQuantizationType
) -> Callable[[slice], Tensor]:
    block_size, type_size = GGML_QUANT_SIZES[type_]
    row_bytes = math.prod(shape[1:]) // block_size * type_size

    def read(rows: slice) -> Tensor:
        data = read_bytes(path, offset + rows.start * row_bytes, (rows.stop - rows.start) * row_bytes)
        if type_ in _PLAIN:
            return torch.from_numpy(data).view(_PLAIN[type_]).view(-1, *shape[1:])
        try:
            return torch.from_numpy(dequantize(data.reshape(rows.stop - rows.start, *shape[1:-1], -1), type_))
        except NotImplementedError as error:
            raise UnsupportedCheckpointError(
                f"{path}: tensor {name!r} is of a type that cannot be dequantized", found=type_.name
            ) from error

    return read
