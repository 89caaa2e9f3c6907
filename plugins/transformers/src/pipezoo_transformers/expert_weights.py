"""The weights of mixtures that core computes: each expert's, whether a checkpoint has them one by one or in stacks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipezoo_core.weights import LazyTensor, divided
from pipezoo_transformers.mixtures import Mixture

if TYPE_CHECKING:
    from transformers.core_model_loading import WeightTransform

__all__ = ["of_list", "one_by_one"]

_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_OF_LIST = re.compile(r"\.experts\.(\d+)\.")
_OF_ADAPTER = re.compile(r"(.*)\.(\d+)\.gate_up_proj\.weight")
_ONE_STACK = [("MergeModulelist", 0)]
_STACKS_SIDE_BY_SIDE = [*_ONE_STACK, ("Concatenate", 1)]


def of_list(
    target: str, rule: WeightTransform, sources: list[tuple[str, str, LazyTensor]], mixture: Mixture
) -> dict[str, LazyTensor] | None:
    """Returns the tensors of a list of experts, of which a rule of transformers makes a stack, by core's names.

    None where the rule does anything else with them.

    Args:
        target: the name of the stack.
        rule: of transformers.
        sources: names, the pattern of the rule that they fit, and tensors.
        mixture: of the stack.
    """
    prefix, _, parameter = target.rpartition(".")
    parts, patterns = _PARTS.get(parameter, ()), rule.source_patterns
    steps = [(type(step).__name__, getattr(step, "dim", None)) for step in getattr(rule, "operations", ())]
    if steps != (_ONE_STACK if len(parts) == 1 else _STACKS_SIDE_BY_SIDE) or len(patterns) != len(parts):
        return None
    if mixture.is_transposed or mixture.is_interleaved:
        return None
    found: dict[str, LazyTensor] = {}
    for name, pattern, tensor in sources:
        number = _OF_LIST.search(name)
        if number is None:
            return None
        found[f"{prefix}.{number[1]}.{parts[patterns.index(pattern)]}.weight"] = tensor
    return found


def one_by_one(tensors: Mapping[str, LazyTensor], mixtures: Mapping[str, Mixture]) -> dict[str, LazyTensor]:
    """Returns tensors with those of each expert by itself in place of a stack's; no other one changes.

    An adapter of stacked experts has gate and up of each expert in one, which become two.

    Args:
        tensors: by transformers' names.
        mixtures: by the names of their modules.
    """
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        prefix, _, parameter = name.rpartition(".")
        fused = _OF_ADAPTER.fullmatch(name)
        if (mixture := mixtures.get(prefix)) and mixture.shapes.get(parameter) == tensor.shape:
            for number, expert in enumerate(tensor.unstacked()):
                found |= _named(f"{prefix}.{number}", parameter, expert, mixture)
        elif fused and (mixture := mixtures.get(fused[1])) and not tensor.shape[0] % 2:
            found |= {f"{fused[1]}.{fused[2]}.{part}.weight": rows for part, rows in _divided(tensor, mixture).items()}
        else:
            found[name] = tensor
    return found


def _named(expert: str, parameter: str, tensor: LazyTensor, mixture: Mixture) -> dict[str, LazyTensor]:
    layer, form = parameter.removesuffix("_bias"), "bias" if parameter.endswith("_bias") else "weight"
    if mixture.is_transposed and form == "weight":
        tensor = tensor.transposed()
    parts = {layer: tensor} if layer == "down_proj" else _divided(tensor, mixture)
    return {f"{expert}.{part}.{form}": rows for part, rows in parts.items()}


def _divided(tensor: LazyTensor, mixture: Mixture) -> dict[str, LazyTensor]:
    """Returns the rows of gate, and those of up."""
    gate_up, parts = "gate_up_proj", _PARTS["gate_up_proj"]
    if mixture.is_interleaved:
        return {part: tensor.every_other(first) for first, part in enumerate(parts)}
    return divided(gate_up, tensor, gate_up, dict.fromkeys(parts, tensor.shape[0] // 2))
