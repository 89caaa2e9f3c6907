"""What a method of quantization has to say of its checkpoints."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Protocol

import torch

from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.weights.base import LazyTensor

__all__ = ["OF_ROWS", "SCALE_DTYPES", "QuantizedFormat", "check_parts", "checked_part", "suffix_of"]

OF_ROWS = re.compile(r"(?:input|output|activation)_(?:scale|zero_point)")
"""Scales of what layers compute with or make: a plain weight beside these is not quantized."""

SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Those that the scales of a checkpoint may have."""


class QuantizedFormat(Protocol):
    """How the tensors of a checkpoint make up its weights, by its `quantization_config`.

    Attributes:
        left_out: entries of the config that name modules which are not quantized, see `entry_naming`.
    """

    left_out: Collection[str]

    def part_of(self, name: str) -> tuple[str, str] | None:
        """Returns the weight that a tensor is a part of, and which: `a.weight` and `qzeros` of `a.qzeros`.

        A weight whose only part is called `weight` is not quantized, unless it is of 8-bit floats.
        """
        ...

    def weight(self, name: str, parts: Mapping[str, LazyTensor]) -> LazyTensor:
        """Returns a quantized weight, [out_features, in_features] of a linear layer.

        Raises:
            CorruptCheckpointError: a part is missing, or they do not fit each other or the config.
            UnsupportedCheckpointError: it is quantized in a way that is not read.
        """
        ...


def suffix_of(name: str, suffixes: Collection[str]) -> tuple[str, str] | None:
    """Returns the weight and the part that a tensor is whose name ends in a part's; None for others."""
    module, _, suffix = name.rpartition(".")
    return (f"{module}.weight", suffix) if module and suffix in suffixes else None


def check_parts(name: str, parts: Collection[str], read: Collection[str]) -> None:
    """Checks that a weight has no part that would be passed over and could say something else of its numbers.

    Args:
        name: of the weight.
        parts: all of them.
        read: those that are read. Scales and zero points of what a layer computes with or makes are none of the weight.

    Raises:
        CorruptCheckpointError: there is another part.
    """
    others = sorted(part for part in parts if part not in read and not OF_ROWS.fullmatch(part))
    if others:
        raise CorruptCheckpointError(
            f"{name} has tensors that contradict each other, or the quantization_config",
            found=sorted(parts),
            allowed=f"none that is called {' or '.join(others)}",
            cure="Download the checkpoint again, or correct the quantization_config.",
        )


def checked_part(
    name: str,
    parts: Mapping[str, LazyTensor],
    part: str,
    dtypes: Collection[torch.dtype],
    shape: tuple[int | None, ...],
) -> LazyTensor:
    """Returns a part of a weight.

    Args:
        name: of the weight.
        parts: all of them.
        part: the wanted one.
        dtypes: that it may have.
        shape: that it has to have; None for any size.

    Raises:
        CorruptCheckpointError: it is missing, or has another shape or dtype.
    """
    found, what = parts.get(part), f"{name}: {part}"
    if found is None:
        raise CorruptCheckpointError(f"{what} is missing", found=sorted(parts), cure="Download the checkpoint again.")
    fits = len(found.shape) == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape, strict=True))
    if not fits or found.dtype not in dtypes:
        raise CorruptCheckpointError(
            f"{what} does not fit the other tensors of the weight, or the quantization_config",
            found=f"{found.dtype} {list(found.shape)}",
            allowed=f"{' or '.join(map(str, dtypes))} [{', '.join('any' if n is None else str(n) for n in shape)}]",
            cure="Download the checkpoint again.",
        )
    return found
