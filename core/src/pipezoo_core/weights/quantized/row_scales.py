"""Scales of weights of 8 bits that a checkpoint has once for a tensor, or for each row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pipezoo_core.weights.base import LazyTensor
from pipezoo_core.weights.quantized.format import checked_part

__all__ = ["row_scales"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def row_scales(name: str, parts: Mapping[str, LazyTensor], part: str) -> Callable[[slice], Tensor]:
    """Returns what reads the scales of a range of rows: float32 [R, 1].

    Args:
        name: of the weight.
        parts: its tensors; `weight` is [out_features, in_features].
        part: the one that has the scales, one or [out_features].

    Raises:
        CorruptCheckpointError: it is missing, or has another shape or dtype.
    """
    num_rows, found = parts["weight"].shape[0], parts.get(part)
    shape = (num_rows,) if found is None or len(found.shape) == 1 else (num_rows, 1)
    if found is not None and math.prod(found.shape) == 1:
        shape = found.shape
    scales = checked_part(name, parts, part, _FLOATS, shape)
    if math.prod(shape) == 1:
        return lambda rows: scales.load().float().view(1, 1).expand(rows.stop - rows.start, 1)
    return lambda rows: scales.read(rows).float().view(-1, 1)
