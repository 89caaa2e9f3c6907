"""GGUF files: header, metadata and tensors, read once.

The layout is that of the GGUF specification (version 2 and 3, little-endian): magic, version, number of tensors,
number of metadata entries, the entries, the tensors' infos, and the tensors' data from an aligned offset on. The
`gguf` package knows the quantized types and how to dequantize them; its reader is not used, because it makes several
array views per string and takes seconds for a vocabulary of 49,152 tokens.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from pipezoo_core.config import WeightsFormat
from pipezoo_core.errors import CorruptCheckpointError, PipezooError, UnsupportedCheckpointError
from pipezoo_core.gguf_parts import part_names, parts_of_one_model
from pipezoo_core.layers.stored import StoredType
from pipezoo_core.local_file import readable
from pipezoo_core.weights.base import LazyTensor, StoredTensor, Weights
from pipezoo_core.weights.reading import read_bytes

__all__ = ["GGUFFile", "open_gguf"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
_MAX_HEADER_BYTES = 64 << 20
_MAX_VALUES = 2**21  # a vocabulary of 262,144 tokens, with their scores, types and merges, has 1.3 million
_RETIRED = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}  # fmt: skip
_PLAIN = {
    GGMLQuantizationType.F64: torch.float64,
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
    GGMLQuantizationType.I64: torch.int64,
    GGMLQuantizationType.I32: torch.int32,
    GGMLQuantizationType.I16: torch.int16,
    GGMLQuantizationType.I8: torch.int8,
}


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """An opened GGUF file, or all parts of one model that is split over several.

    Attributes:
        metadata: key -> value, e.g. `llama.block_count` -> 30; of several parts the first one's.
        weights: the tensors under their GGUF names, in torch's order of dimensions.
        paths: of the file, or of all parts in their order.
    """

    metadata: dict[str, Any]
    weights: Weights
    paths: tuple[Path, ...]


def open_gguf(path: Path) -> GGUFFile:
    """Reads the header of a GGUF file, and those of the other parts where it is one part of a model.

    Raises:
        CorruptCheckpointError: a file is truncated, or not a GGUF file, or has something twice.
        UnsupportedCheckpointError: it is of another version or byte order, or has a type that is not known.
        MissingShardError: another part is not there.
        UnreadableFileError: a file cannot be read.
    """
    file = _open_one(path)
    num_parts = file.metadata.get("split.count", 0)
    if not isinstance(num_parts, int) or num_parts < 2:
        return file
    paths = [path.with_name(name) for name in part_names(path.name)]
    if len(paths) != num_parts:
        raise UnsupportedCheckpointError(
            f"{path} is one of {num_parts} parts of a split model, and its name does not say which",
            allowed=f"{path.stem}-00001-of-{num_parts:05}.gguf and so on",
            cure="Give the parts the names that they had.",
        )
    with readable(path.parent):
        parts_of_one_model([part.name for part in paths if part.is_file()])
    return _merged(paths, [file if part == path else _open_one(part) for part in paths])


def _merged(paths: Sequence[Path], parts: Sequence[GGUFFile]) -> GGUFFile:
    tensors: dict[str, LazyTensor] = {}
    for number, (path, part) in enumerate(zip(paths, parts, strict=True)):
        found = part.metadata.get("split.no"), part.metadata.get("split.count")
        twice = sorted(tensors.keys() & part.weights.keys())
        if found != (number, len(parts)) or twice:
            raise CorruptCheckpointError(
                f"{path} is not the part of a split model that its name says",
                found=f"part {found[0]} of {found[1]}, counted from 0" + (f", with {twice[0]} again" if twice else ""),
                cure="Download the parts again.",
            )
        tensors |= part.weights
    metadata, num_tensors = parts[0].metadata, parts[0].metadata.get("split.tensors.count", len(tensors))
    if num_tensors != len(tensors):
        raise CorruptCheckpointError(
            f"the parts of {paths[0]} do not hold all tensors", found=len(tensors), allowed=num_tensors
        )
    is_quantized = any(part.weights.is_quantized for part in parts)
    return GGUFFile(metadata, Weights(WeightsFormat.gguf, tensors, is_quantized=is_quantized), tuple(paths))


def _open_one(path: Path) -> GGUFFile:
    try:
        with readable(path), path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _Reader(file, size, path).read()
    except PipezooError:
        raise
    except (struct.error, ValueError, LookupError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"{path} is not a whole GGUF file", found=error, cure="Download the file again."
        ) from error


class _Reader:
    """Walks over a file's header once, front to back. What it makes of it is bounded, whatever the header says."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self._file = file
        self._size = size
        self._path = path
        self._at = 0
        self._num_values = 0

    def read(self) -> GGUFFile:
        if self._take(4) != _MAGIC:
            raise ValueError("it does not begin with 'GGUF'")
        self._check_version(self._take(4))
        num_tensors, num_entries = self._scalar("Q"), self._scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self._string()
            if key in metadata:
                raise ValueError(f"the key {key!r:.80} is there twice")
            metadata[key] = self._value(self._scalar("I"))
        infos: dict[str, tuple[tuple[int, ...], GGMLQuantizationType, int]] = {}
        for _ in range(num_tensors):
            name = self._string()
            if name in infos:
                raise ValueError(f"the tensor {name!r:.80} is there twice")
            infos[name] = self._tensor_info(name)
        alignment = _checked_alignment(metadata.get("general.alignment", 32))
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, LazyTensor] = {}
        end = 0
        for name, (shape, type_, offset) in sorted(infos.items(), key=lambda item: item[1][2]):
            if offset < end or offset % alignment:
                raise ValueError(f"tensor {name!r:.80} begins at {offset}, within another or not aligned")
            end = offset + self._checked_bytes(name, shape, type_, start + offset)
            tensors[name] = _tensor(self._path, name, start + offset, shape, type_)
        is_quantized = any(type_ not in _PLAIN for _, type_, _ in infos.values())
        return GGUFFile(metadata, Weights(WeightsFormat.gguf, tensors, is_quantized=is_quantized), (self._path,))

    def _check_version(self, found: bytes) -> None:
        version, other = int.from_bytes(found, "little"), int.from_bytes(found, "big")
        if other in _VERSIONS:
            raise UnsupportedCheckpointError(
                f"{self._path} is of the other byte order", found="big-endian", allowed="little-endian",
                cure="Take the file for little-endian machines.",
            )  # fmt: skip
        if version not in _VERSIONS:
            raise UnsupportedCheckpointError(
                f"{self._path} is of an unsupported GGUF version",
                found=version,
                allowed=_VERSIONS,
                cure="Convert the model again.",
            )

    def _take(self, size: int) -> bytes:
        if size > self._size - self._at:
            raise ValueError(f"it ends after {self._size} bytes, within its header")
        self._at += size
        if self._at > _MAX_HEADER_BYTES:
            raise ValueError(f"its header is longer than {_MAX_HEADER_BYTES} bytes")
        taken = self._file.read(size)
        if len(taken) < size:
            raise ValueError("it became shorter while it was read")
        return taken

    def _count(self, num_values: int) -> None:
        self._num_values += num_values
        if self._num_values > _MAX_VALUES:
            raise ValueError(f"its header has more than {_MAX_VALUES} values")

    def _scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _string(self) -> str:
        # Byte-level vocabularies hold pieces of characters only in their printable form, but some files do not.
        return self._take(self._scalar("Q")).decode("utf-8", errors="replace")

    def _value(self, type_: int) -> Any:
        self._count(1)
        if type_ in _SCALARS:
            return self._scalar(_SCALARS[type_])
        if type_ == _STRING:
            return self._string()
        if type_ == _ARRAY:
            item_type, count = self._scalar("I"), self._scalar("Q")
            if item_type in _SCALARS:
                self._count(count)
                code = f"<{count}{_SCALARS[item_type]}"
                return list(struct.unpack(code, self._take(struct.calcsize(code))))
            return [self._value(item_type) for _ in range(count)]
        raise ValueError(f"unknown type {type_} of a metadata value")

    def _tensor_info(self, name: str) -> tuple[tuple[int, ...], GGMLQuantizationType, int]:
        """Returns a tensor's shape, type, and offset in the data."""
        self._count(_MAX_DIMS)
        num_dims = self._scalar("I")
        if num_dims > _MAX_DIMS:
            raise ValueError(f"tensor {name!r:.80} has {num_dims} dimensions")
        dims = tuple(self._scalar("Q") for _ in range(num_dims))
        number = self._scalar("I")
        try:
            type_ = GGMLQuantizationType(number)
        except ValueError as error:
            raise UnsupportedCheckpointError(
                f"{self._path}: tensor {name!r:.80} is of a type that is not known",
                found=f"{number} ({_RETIRED[number]}, which GGUF has no more)" if number in _RETIRED else number,
                allowed=[known.name for known in GGML_QUANT_SIZES],
                cure="Take a file with another quantization.",
            ) from error
        return dims[::-1], type_, self._scalar("Q")

    def _checked_bytes(self, name: str, shape: tuple[int, ...], type_: GGMLQuantizationType, offset: int) -> int:
        block_size, type_size = GGML_QUANT_SIZES[type_]
        if len(shape) < min(block_size, 2) or 0 in shape or shape[-1] % block_size:
            raise ValueError(f"tensor {name!r:.80} of shape {list(shape)} has no whole rows of {block_size} numbers")
        num_bytes = math.prod(shape) // block_size * type_size
        if offset + num_bytes > self._size:
            raise ValueError(f"tensor {name!r:.80} ends at byte {offset + num_bytes} of {self._size}")
        return num_bytes


def _checked_alignment(value: object) -> int:
    """Returns a power of two, which is what other readers take."""
    if type(value) is not int or value < 1 or value & (value - 1):
        raise ValueError(f"general.alignment is {value!r:.80}")
    return value


def _tensor(path: Path, name: str, offset: int, shape: tuple[int, ...], type_: GGMLQuantizationType) -> LazyTensor:
    """Returns a tensor of a file; of a quantized one also the blocks that it is made of."""
    if type_ in _PLAIN:
        dtype = _PLAIN[type_]
        read, read_vectors = _reader(path, offset, shape, dtype), _reader(path, offset, (-1, shape[-1]), dtype)
        return LazyTensor(shape, dtype, read, read_vectors)
    block, block_bytes = GGML_QUANT_SIZES[type_]
    row_bytes = shape[-1] // block * block_bytes
    stored = StoredType(type_.name, block, block_bytes, _dequantizer(f"{path}: tensor {name!r}", type_))
    read = _reader(path, offset, (*shape[:-1], row_bytes), torch.uint8)
    read_vectors = _reader(path, offset, (-1, row_bytes), torch.uint8)
    as_bytes = LazyTensor((*shape[:-1], row_bytes), torch.uint8, read, read_vectors)
    return LazyTensor(
        shape,
        torch.float32,
        lambda rows: stored.dequantize(read(rows)),
        lambda rows: stored.dequantize(read_vectors(rows)),
        stored=StoredTensor(stored, as_bytes),
    )


def _reader(path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[slice], Tensor]:
    """Returns what reads a range of rows of a tensor as it lies in the file."""
    row_bytes = math.prod(shape[1:]) * dtype.itemsize

    def read(rows: slice) -> Tensor:
        data = read_bytes(path, offset + rows.start * row_bytes, (rows.stop - rows.start) * row_bytes)
        return torch.from_numpy(data).view(dtype).view(-1, *shape[1:])

    return read


def _dequantizer(what: str, type_: GGMLQuantizationType) -> Callable[[Tensor], Tensor]:
    def change(blocks: Tensor) -> Tensor:
        try:
            return torch.from_numpy(dequantize(blocks.numpy(), type_))
        except NotImplementedError as error:
            raise UnsupportedCheckpointError(
                f"{what} is of a type that cannot be dequantized", found=type_.name
            ) from error

    return change
