"""Experts whose gate and up lie in one matrix, as transformers has them and adapters are trained on them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipezoo_core.weights.base import LazyTensor, divided

__all__ = ["with_experts_divided"]

_PARTS = ("gate_proj", "up_proj")
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
