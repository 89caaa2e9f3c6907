"""Checkpoints in the format of compressed-tensors, which llm-compressor writes; of weights alone.

`pack-quantized`: a layer has, with 4 bits and 8 numbers in an int32, `weight_packed` int32 [out, in / 8],
`weight_scale` [out, groups], `weight_shape`, and perhaps `weight_zero_point`, int32 [out / 8, groups], and
`weight_g_idx` [in]. Numbers and zero points have a sign; 2^(bits - 1) is added to both where they are packed. A number
is `(q - zero) · scale`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.weights.base import LazyTensor
from pipezoo_core.weights.quantized.affine import AffineWeight, unpacked
from pipezoo_core.weights.quantized.entries import Entries, entry_naming, not_read, parsed
from pipezoo_core.weights.quantized.format import QuantizedFormat, checked_part, suffix_of
from pipezoo_core.weights.quantized.grouping import column_groups, group_sizes

__all__ = ["CompressedTensors"]

_PARTS = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
_BITS = (4, 8)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class _Arguments(Entries):
    num_bits: int = 8
    type: str = "int"
    symmetric: bool = True
    strategy: str | None = None
    group_size: int | None = None


class _Group(Entries):
    targets: list[str]
    weights: _Arguments | None = None
    input_activations: dict[str, Any] | None = None
    output_activations: dict[str, Any] | None = None
    format: str | None = None


class _Entries(Entries):
    config_groups: dict[str, _Group]
    format: str = "dense"
    ignore: list[str] | None = None
    kv_cache_scheme: dict[str, Any] | None = None
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None


class CompressedTensors(QuantizedFormat):
    """How compressed-tensors stores a checkpoint.

    Args:
        config: the `quantization_config`.

    Raises:
        UnsupportedCheckpointError: more than weights is quantized, or they are changed in other ways besides.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._entries = parsed(_Entries, config)
        for entry in ("kv_cache_scheme", "sparsity_config", "transform_config"):
            if getattr(self._entries, entry):
                raise not_read("the checkpoint has an entry of compressed-tensors", entry, ["config_groups"])

    def part_of(self, name: str) -> tuple[str, str] | None:
        """See `QuantizedFormat`."""
        return suffix_of(name, _PARTS)

    def leaves_out(self, module: str) -> str | None:
        """See `QuantizedFormat`."""
        return entry_naming(module, self._entries.ignore or ())

    def weight(self, name: str, parts: Mapping[str, LazyTensor]) -> LazyTensor:
        """See `QuantizedFormat`."""
        group = self._group_of(name.removesuffix(".weight"))
        kind = group.format or self._entries.format
        if kind not in _FORMATS:
            raise not_read(f"{name} is of a format of compressed-tensors", kind, sorted(_FORMATS))
        if group.weights is None:
            raise CorruptCheckpointError(f"config.json says nothing of the numbers of {name}", found=sorted(parts))
        if group.input_activations or group.output_activations:
            raise not_read(f"{name} is of a layer with quantized activations, a kind", kind, ["weights alone"])
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
    scales = checked_part(name, parts, "weight_scale", _FLOATS, (num_rows, num_groups))
    middle = 2 ** (bits - 1)

    def constant(rows: slice) -> Tensor:
        return torch.full((rows.stop - rows.start, num_groups), middle, dtype=torch.uint8, device="cpu")

    zeros = constant
    if not arguments.symmetric:
        zero_shape = (-(-num_rows // per_word), num_groups)
        points = checked_part(name, parts, "weight_zero_point", (torch.int32,), zero_shape)

        def zeros(rows: slice) -> Tensor:
            first, end = rows.start // per_word, -(-rows.stop // per_word)
            found = unpacked(points.read(slice(first, end)).T, bits).T
            return found[rows.start - first * per_word : rows.stop - first * per_word]

    return AffineWeight(
        method="compressed-tensors",
        bits=bits,
        shape=(num_rows, num_columns),
        numbers=lambda rows: unpacked(packed.read(rows), bits)[:, :num_columns],
        scales=scales.read,
        zeros=zeros,
        scale_dtype=scales.dtype,
        groups=column_groups(name, parts, "weight_g_idx", num_columns, group),
        group=group,
    ).tensor()


_FORMATS: Mapping[str, Callable[[str, Mapping[str, LazyTensor], _Arguments], LazyTensor]] = {
    "pack-quantized": _packed,
}
"""By the name of a format: each makes a weight of its parts."""
