"""Adapters of a mixture's experts, as PEFT writes them for `target_parameters`: one A and one B for all experts.

The reference is PEFT's `ParamWrapper`. Shape suffixes: E experts, R rank, I in_features, O out_features.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial

from torch import Tensor

from pipezoo_core.weights import LazyTensor

__all__ = ["EXPERT", "is_stacked", "leaves_experts_out", "of_each_expert", "stacked_name"]

EXPERT = re.compile(r"\.experts\.(\d+)\.")
"""In the name of a layer of one expert."""

_EXPERTS = ".experts"
_NESTED = ".base_layer"
_FIRST = {True: "gate_up_proj", False: "up_proj"}  # with gates, and without
_LAST = "down_proj"  # in the order in which transformers' modules declare them


def is_stacked(layer: str) -> bool:
    """Whether an adapter's layer is what PEFT made of a parameter of all experts, by its name."""
    return layer.removesuffix(_NESTED).endswith(_EXPERTS)


def stacked_name(
    layer: str, layers: Mapping[str, object], targets: Sequence[str], *, gated: bool | None = None
) -> str | None:
    """Returns the name of the parameter that an adapter's layer changes; None where the config does not say it.

    PEFT wraps one parameter after the other, so that of two the first is `….experts.base_layer`, and the second
    `….experts`. Of one alone it is the config that names it.

    Args:
        layer: e.g. `model.layers.0.mlp.experts.base_layer`.
        layers: all names of the adapter's layers.
        targets: `target_parameters` of the config: ends of names, from a dot on. PEFT passes over what a model lacks.
        gated: whether the model's experts have gates; None where that is not known.
    """
    experts = layer.removesuffix(_NESTED)
    wrapped = [experts + _NESTED, experts] if experts + _NESTED in layers else [experts]
    for first in _FIRST.values() if gated is None else [_FIRST[gated]]:
        names = [f"{experts}.{parameter}" for parameter in (first, _LAST)]
        meant = [name for name in names if any(f".{name}".endswith(f".{target}") for target in targets)]
        if len(meant) == len(wrapped):
            return dict(zip(wrapped, meant, strict=True))[layer]
    return None


def leaves_experts_out(name: str, num_experts: int | None, targets: Container[str]) -> bool:
    """Whether a layer is the last one of the experts that an adapter was trained on, and the model has more of them.

    Args:
        name: in the module, e.g. `model.layers.0.mlp.experts.7.down_proj`.
        num_experts: of the adapter; None for a layer that was by itself.
        targets: the module's layers.
    """
    number = EXPERT.search(name)
    if number is None or num_experts is None or int(number[1]) != num_experts - 1:
        return False
    return EXPERT.sub(f".experts.{num_experts}.", name) in targets


def of_each_expert(
    a: LazyTensor, b: LazyTensor, rank: int, load: Callable[[LazyTensor], Tensor]
) -> list[tuple[LazyTensor, LazyTensor]]:
    """Returns A [R, I] and B [O, R] of each expert.

    Of two experts with rank 2, the rows of A are 0's, 0's, 1's and 1's, and the columns of B 0's, 1's, 0's and 1's.

    Args:
        a: [E · R, I].
        b: [O, R · E].
        rank: R.
        load: reads `b` whole, for each expert anew: the columns of one are all over it. It should remember the latest.
    """
    num_experts = a.shape[0] // rank
    return [
        (
            a.rows(slice(number * rank, (number + 1) * rank)),
            LazyTensor((b.shape[0], rank), b.dtype, _columns(partial(load, b), number, num_experts)),
        )
        for number in range(num_experts)
    ]


def _columns(whole: Callable[[], Tensor], first: int, step: int) -> Callable[[slice], Tensor]:
    return lambda rows: whole()[rows, first::step]
