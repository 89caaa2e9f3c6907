"""Which parameters are float32 whatever a model is run in, and the dtype of all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn

__all__ = ["KeepsFloat32", "float32_parameters", "set_dtype"]


@runtime_checkable
class KeepsFloat32(Protocol):
    """A module some of whose parameters decide more than they compute: a router's weight, a correction of its scores.

    Attributes:
        keeps_float32: names of its own parameters that are float32 in every encoding.
    """

    keeps_float32: Sequence[str]


def float32_parameters(module: nn.Module) -> set[nn.Parameter]:
    """Returns the parameters that its modules keep in float32."""
    found = (
        child._parameters.get(name)
        for child in module.modules()
        for name in getattr(child, "keeps_float32", ())  # isinstance of a protocol is slow in Python 3.11
    )
    return {parameter for parameter in found if parameter is not None}


def set_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    """Gives all parameters a dtype, but those that stay float32. Buffers keep theirs."""
    kept = float32_parameters(module)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter in kept else dtype)
