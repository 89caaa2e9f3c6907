"""Experts that are one tensor, or whose gate and up are one matrix, as transformers has them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipezoo_core.weights.base import LazyTensor, divided

__all__ = ["with_experts_divided", "with_experts_unstacked"]

_PARTS = ("gate_proj", "up_proj")
_STACKED = re.compile(r"(.*\.experts)\.(gate_up_proj|up_proj|down_proj)")
_FUSED = re.compile(r".*\.experts\.\d+\.gate_up_proj\.weight")


def with_experts_divided(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Returns tensors with `experts.3.gate_up_proj.weight` as `experts.3.gate_proj.weight` and `….up_proj.weight`.

    The gate's rows are the first half. No other tensor changes. Weight adapters of mixtures do so, because an adapter
    of experts goes through them under this name.
    """
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        parts = dict.fromkeys(_PARTS, tensor.shape[0] // 2)
        found |= divided(name, tensor, "gate_up_proj", parts) if _FUSED.fullmatch(name) else {name: tensor}
    return found


def with_experts_unstacked(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Returns tensors with `experts.down_proj`, [experts, out, in], as `experts.3.down_proj.weight`, [out, in].

    `experts.gate_up_proj` and `experts.up_proj` likewise. No other tensor changes.
    """
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if (stacked := _STACKED.fullmatch(name)) is None:
            found[name] = tensor
        else:
            experts, layer = stacked.groups()
            found |= {f"{experts}.{i}.{layer}.weight": each for i, each in enumerate(tensor.unstacked())}
    return found
