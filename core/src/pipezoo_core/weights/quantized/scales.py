"""Scales of weights of 8 bits: one for a tensor, one for each row, or one for each block of rows and columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pipezoo_core.weights.base import LazyTensor
from pipezoo_core.weights.quantized.format import SCALE_DTYPES, checked_part

__all__ = ["block_scales", "row_scales"]


def row_scales(name: str, parts: Mapping[str, LazyTensor], part: str) -> Callable[[slice], Tensor]:
    """Returns what reads the scales of a range of rows, float32 [R, 1].

    Args:
        name: of the weight.
        parts: its tensors; `weight` is [out_features, in_features].
        part: the one with the scales: a single one, [out_features] or [out_features, 1].

    Raises:
        CorruptCheckpointError: it is missing, or has another shape or dtype.
    """
    num_rows, found = parts["weight"].shape[0], parts.get(part)
    is_single = found is not None and math.prod(found.shape) == 1
    shape: tuple[int, ...] = found.shape if found is not None and is_single else (num_rows, 1)
    if found is not None and len(found.shape) == 1 and not is_single:
        shape = (num_rows,)
    scales = checked_part(name, parts, part, SCALE_DTYPES, shape)
    if is_single:
        return lambda rows: scales.load().float().view(1, 1).expand(rows.stop - rows.start, 1)
    return lambda rows: scales.read(rows).float().view(-1, 1)


def block_scales(
    name: str, parts: Mapping[str, LazyTensor], part: str, block: tuple[int, int]
) -> Callable[[slice], Tensor]:
    """Returns what reads the scales of a range of rows, float32 [R, blocks of columns].

    Args:
        name: of the weight.
        parts: its tensors; `weight` is [out_features, in_features].
        part: the one with the scales: [blocks of rows, blocks of columns], of which the last may be smaller.
        block: its rows and columns.

    Raises:
        CorruptCheckpointError: it is missing, or has another shape or dtype.
    """
    height, width = block
    num_rows, num_columns = parts["weight"].shape
    scales = checked_part(name, parts, part, SCALE_DTYPES, (-(-num_rows // height), -(-num_columns // width)))

    def read(rows: slice) -> Tensor:
        first = rows.start // height
        found = scales.read(slice(first, -(-rows.stop // height))).float()
        return found[torch.arange(rows.start, rows.stop, dtype=torch.int64, device="cpu") // height - first]

    return read
