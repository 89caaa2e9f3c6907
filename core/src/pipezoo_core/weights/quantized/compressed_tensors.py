"""Checkpoints in the format of compressed-tensors, which llm-compressor writes.

`pack-quantized`: a layer has, with 4 bits and 8 numbers in an int32, `weight_packed` int32 [out, in / 8],
`weight_scale` [out, groups], `weight_shape`, and perhaps `weight_zero_point`, int32 [out / 8, groups], and
`weight_g_idx` [in]. Numbers and zero points have a sign; 2^(bits - 1) is added to both where they are packed. A number
is `(q - zero) · scale`.

`int-quantized` and `float-quantized`: a layer has `weight`, int8 or e4m3 [out, in], and `weight_scale`, one, or one for
each row, or one for each block; the former perhaps `weight_zero_point`. `naive-quantized` is either of them.

Layers may ask for rows of x that are rounded, too, by scales of the file (`input_scale`) or found at run time. Here
rows keep their type where weights are floats, and have a scale for each 32 numbers where they are integers: both are
nearer to the model before quantization, and what a file says of it is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from pipezoo_core.config_entries import NUMBER
from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.weights.base import LazyTensor
from pipezoo_core.weights.quantized.affine import AffineWeight, of_words, unpacked
from pipezoo_core.weights.quantized.e4m3 import E4M3, E4M3Weight
from pipezoo_core.weights.quantized.entries import Entries, Size, entry_naming, not_read, parsed
from pipezoo_core.weights.quantized.format import SCALE_DTYPES, QuantizedFormat, check_parts, checked_part, suffix_of
from pipezoo_core.weights.quantized.grouping import column_groups, group_sizes, groups_in_order
from pipezoo_core.weights.quantized.scales import block_scales, row_scales

__all__ = ["CompressedTensors"]

_PARTS = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
_OF_ROWS = tuple(f"{what}_{number}" for what in ("input", "output") for number in ("scale", "zero_point"))
_BITS = (4, 8)


class _Arguments(Entries):
    num_bits: Annotated[int, NUMBER] = 8
    type: str = "int"
    symmetric: bool = True
    strategy: str | None = None
    group_size: Size | None = None
    block_structure: tuple[Size, Size] | None = None


class _Group(Entries):
    targets: list[str]
    weights: _Arguments | None = None
    format: str | None = None


class _Sparsity(Entries):
    format: str = "dense"


class _Entries(Entries):
    config_groups: dict[str, _Group]
    format: str = "dense"
    ignore: list[str] | None = None
    sparsity_config: _Sparsity | None = None
    transform_config: dict[str, Any] | None = None


class CompressedTensors(QuantizedFormat):
    """How compressed-tensors stores a checkpoint.

    Args:
        config: the `quantization_config`.

    Raises:
        UnsupportedCheckpointError: weights are changed in other ways besides.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._entries = parsed(_Entries, config)
        self.left_out = self._entries.ignore or ()
        sparsity = self._entries.sparsity_config
        if sparsity is not None and sparsity.format != "dense":
            raise not_read("the checkpoint has a sparsity_config of compressed-tensors", sparsity.format, ["dense"])
        if self._entries.transform_config:
            raise not_read("the checkpoint has an entry of compressed-tensors", "transform_config", ["config_groups"])

    def part_of(self, name: str) -> tuple[str, str] | None:
        """See `QuantizedFormat`."""
        return suffix_of(name, (*_PARTS, *_OF_ROWS))

    def weight(self, name: str, parts: Mapping[str, LazyTensor]) -> LazyTensor:
        """See `QuantizedFormat`."""
        group = self._group_of(name.removesuffix(".weight"))
        kind = group.format or self._entries.format
        if kind not in _FORMATS:
            raise not_read(f"{name} is of a format of compressed-tensors", kind, sorted(_FORMATS))
        if group.weights is None:
            raise CorruptCheckpointError(f"config.json says nothing of the numbers of {name}", found=sorted(parts))
        return _FORMATS[kind](name, parts, group.weights)

    def _group_of(self, module: str) -> _Group:
        """Returns what the config says of a module: by its name, else of all linear layers."""
        groups = self._entries.config_groups.values()
        named = [group for group in groups if entry_naming(module, group.targets) is not None]
        found = named or [group for group in groups if "Linear" in group.targets]
        if not found:
            raise CorruptCheckpointError(
                f"config.json names no group of {module}, which is quantized",
                found=[target for group in groups for target in group.targets],
                cure="Correct the quantization_config.",
            )
        return found[0]


def _packed(name: str, parts: Mapping[str, LazyTensor], arguments: _Arguments) -> LazyTensor:
    bits, per_word = arguments.num_bits, 32 // (arguments.num_bits or 32)
    if bits not in _BITS or arguments.type != "int":
        raise not_read(f"{name} has numbers of a kind", f"{arguments.type} of {bits} bits", ["int of 4 or 8 bits"])
    if arguments.strategy not in (None, "group", "channel"):
        raise not_read(f"{name} has scales in a way", arguments.strategy, ["group", "channel"])
    shape = checked_part(name, parts, "weight_shape", (torch.int64, torch.int32), (2,)).load()
    num_rows, num_columns = (int(size) for size in shape)
    packed = checked_part(name, parts, "weight_packed", (torch.int32,), (num_rows, -(-num_columns // per_word)))
    size = -1 if arguments.strategy == "channel" else arguments.group_size or -1
    group, num_groups = group_sizes(name, num_columns, size)
    scales = checked_part(name, parts, "weight_scale", SCALE_DTYPES, (num_rows, num_groups))
    check_parts(name, parts, ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"))
    zeros: Callable[[slice], Tensor] | None = None
    if arguments.symmetric:
        _check_symmetric(name, parts)
    else:
        zero_shape = (-(-num_rows // per_word), num_groups)
        points = checked_part(name, parts, "weight_zero_point", (torch.int32,), zero_shape)

        def of_rows(rows: slice) -> Tensor:
            first, end = rows.start // per_word, -(-rows.stop // per_word)
            found = unpacked(of_words(points.read(slice(first, end)).T), bits).T
            return found[rows.start - first * per_word : rows.stop - first * per_word]

        zeros = of_rows

    return AffineWeight(
        method="compressed-tensors",
        bits=bits,
        shape=(num_rows, num_columns),
        numbers=lambda rows: of_words(packed.read(rows)),
        scales=scales.read,
        zeros=zeros,
        scale_dtype=scales.dtype,
        groups=column_groups(name, parts, "weight_g_idx", num_columns, group),
        group=group,
    ).tensor()


def _eights(name: str, parts: Mapping[str, LazyTensor], arguments: _Arguments) -> LazyTensor:
    kind = (arguments.type, arguments.num_bits)
    if kind == ("float", 8):
        return _floats(name, parts, arguments)
    if kind == ("int", 8):
        return _integers(name, parts, arguments)
    raise not_read(f"{name} has numbers of a kind", f"{kind[0]} of {kind[1]} bits", ["int or float of 8 bits"])


def _floats(name: str, parts: Mapping[str, LazyTensor], arguments: _Arguments) -> LazyTensor:
    check_parts(name, parts, ("weight", "weight_scale", "weight_zero_point"))
    _check_symmetric(name, parts)
    numbers, block = checked_part(name, parts, "weight", (E4M3,), (None, None)), arguments.block_structure
    if arguments.strategy == "block" and block is not None and min(block) > 0:
        scales = block_scales(name, parts, "weight_scale", block)
        return E4M3Weight(numbers=numbers, scales=scales, span=block[1]).tensor()
    if arguments.strategy not in (None, "tensor", "channel"):
        raise not_read(f"{name} has scales in a way", arguments.strategy, ["tensor", "channel", "block"])
    scales = row_scales(name, parts, "weight_scale")
    return E4M3Weight(numbers=numbers, scales=scales, span=numbers.shape[1]).tensor()


def _integers(name: str, parts: Mapping[str, LazyTensor], arguments: _Arguments) -> LazyTensor:
    if arguments.strategy not in (None, "tensor", "channel"):
        raise not_read(f"{name} has scales in a way", arguments.strategy, ["tensor", "channel"])
    check_parts(name, parts, ("weight", "weight_scale", "weight_zero_point"))
    numbers = checked_part(name, parts, "weight", (torch.int8,), (None, None))
    num_rows, num_columns = numbers.shape
    points = None
    if arguments.symmetric:
        _check_symmetric(name, parts)
    else:
        found = parts.get("weight_zero_point")
        is_single = found is not None and found.shape == (1,)
        points = checked_part(name, parts, "weight_zero_point", (torch.int8,), (1,) if is_single else (num_rows, 1))
    return AffineWeight(
        method="compressed-tensors",
        bits=8,
        shape=(num_rows, num_columns),
        numbers=_unsigned_rows(numbers),
        scales=row_scales(name, parts, "weight_scale"),
        zeros=None if points is None else _zero_points(points),
        scale_dtype=parts["weight_scale"].dtype,
        groups=groups_in_order(num_columns, num_columns),
        group=num_columns,
    ).tensor()


def _check_symmetric(name: str, parts: Mapping[str, LazyTensor]) -> None:
    """Checks that the zero points of a symmetric weight, which old files have in any shape and dtype, are all 0."""
    points = parts.get("weight_zero_point")
    if points is not None and points.load().float().any():
        check_parts(name, parts, set(_PARTS) - {"weight_zero_point"})


def _zero_points(points: LazyTensor) -> Callable[[slice], Tensor]:
    """Returns what reads the zero points of rows, uint8 [R, 1]: of int8, one for all, [1], or one each, [R, 1]."""
    if len(points.shape) == 2:
        return _unsigned_rows(points)
    return lambda rows: (points.load().view(torch.uint8) ^ 128).view(1, 1).expand(rows.stop - rows.start, 1)


def _unsigned_rows(numbers: LazyTensor) -> Callable[[slice], Tensor]:
    """Returns what reads rows of int8 with 128 added, as uint8."""
    return lambda rows: numbers.read(rows).view(torch.uint8) ^ 128


_FORMATS: Mapping[str, Callable[[str, Mapping[str, LazyTensor], _Arguments], LazyTensor]] = {
    "pack-quantized": _packed,
    "int-quantized": _eights,
    "float-quantized": _eights,
    "naive-quantized": _eights,
}
"""By the name of a format: each makes a weight of its parts."""
