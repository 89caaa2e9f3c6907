"""Writes safetensors piece by piece, in files of a bounded size with an index, so that no tensor need be in memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipezoo_core.file_names import WEIGHTS, WEIGHTS_INDEX

__all__ = ["WrittenTensor", "write_safetensors"]

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
_ALIGNMENT = 8  # of the data, by the format's description


@dataclass(frozen=True, slots=True)
class WrittenTensor:
    """A tensor to be written.

    Attributes:
        name: in the file.
        shape: of the whole.
        dtype: of the whole.
        pieces: yields its rows from first to last, some at a time, in this dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterator[Tensor]]

    @property
    def num_bytes(self) -> int:
        """Of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    folder: Path,
    tensors: Sequence[WrittenTensor],
    *,
    max_file_bytes: int,
    written: Callable[[WrittenTensor], None],
) -> None:
    """Writes tensors into a folder, as `model.safetensors` or as several files with an index.

    Args:
        folder: is there, and has no weights.
        tensors: in any order.
        max_file_bytes: most bytes of a file's data; a tensor that is larger has a file of its own.
        written: called with each tensor that is there.

    Raises:
        OSError: a file cannot be written.
    """
    wide_first = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))  # so that all are aligned
    files: list[list[WrittenTensor]] = [[]]
    size = 0
    for tensor in wide_first:
        if files[-1] and size + tensor.num_bytes > max_file_bytes:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.num_bytes
    names = [WEIGHTS] if len(files) == 1 else [_part_name(number, len(files)) for number in range(1, len(files) + 1)]
    for name, part in zip(names, files, strict=True):
        _write_file(folder / name, part, written)
    if len(files) > 1:
        places = {tensor.name: name for name, part in zip(names, files, strict=True) for tensor in part}
        index = {
            "metadata": {"total_size": sum(t.num_bytes for t in tensors)},
            "weight_map": dict(sorted(places.items())),
        }
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _part_name(number: int, count: int) -> str:
    stem, ending = WEIGHTS.split(".")
    return f"{stem}-{number:05}-of-{count:05}.{ending}"


def _write_file(path: Path, tensors: Sequence[WrittenTensor], written: Callable[[WrittenTensor], None]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        offsets = [end, end + tensor.num_bytes]
        header[tensor.name] = {"dtype": _DTYPES[tensor.dtype], "shape": tensor.shape, "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            num_bytes = 0
            for piece in tensor.pieces():
                assert piece.dtype is tensor.dtype
                num_bytes += file.write(piece.contiguous().view(torch.uint8).numpy().data)
            assert num_bytes == tensor.num_bytes
            written(tensor)
