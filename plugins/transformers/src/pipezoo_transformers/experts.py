"""A mixture of experts of transformers as one operation of torch.

Which experts have rows is read on the host, in a loop, which no recorded step can repeat. As one operation it can be
run again: what it reads and writes lies in tensors, whatever it does in between.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn

__all__ = ["alive_in_experts", "compute_experts", "has_experts"]

_INDEX_BYTES = 8
_HALF_BYTES = 2  # of a number in the narrowest precision, in which the indices weigh most

_library = torch.library.Library("pipezoo_transformers", "DEF")
_library.define("experts(str layer, Tensor hidden, Tensor indices, Tensor weights) -> Tensor")
_layers: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()
_names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_numbers = itertools.count()


def has_experts(module: nn.Module) -> bool:
    """Whether it is of a class that transformers' experts interface serves."""
    return hasattr(module, "_is_expert_parallel")


def compute_experts(module: nn.Module, hidden_TH: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """Maps [T, H] to [T, H] by the module's own code, as one operation."""
    if module not in _names:
        _names[module] = str(next(_numbers))
        _layers[_names[module]] = module
    y_TH: Tensor = torch.ops.pipezoo_transformers.experts(_names[module], hidden_TH, indices_TK, weights_TK)
    return y_TH


def alive_in_experts(module: nn.Module, num_chosen: int) -> int:
    """Returns about the numbers per token that are alive in a mixture at once.

    All tokens may choose the same expert. Its parameters say what it makes of each: [E, 2I, H] and [E, H, I], or
    transposed. Which experts a token has chosen is marked in int64, for one more than there are.

    Args:
        module: of transformers, whose experts are stacked.
        num_chosen: experts per token.
    """
    stacked = [parameter.shape for parameter in module.parameters() if parameter.dim() == 3]
    num_experts = max((shape[0] for shape in stacked), default=0)
    marks = num_chosen * (num_experts + 1) * _INDEX_BYTES // _HALF_BYTES
    sizes = [size for shape in stacked for size in shape[1:]]  # that a matrix reads and writes
    activation = max(sizes, default=0) // 2  # of a gate, which lies beside what it lets through
    return marks + sum(sizes) + activation


def _run(layer: str, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    module = _layers[layer]
    forward: Any = type(module).forward
    y: Tensor = forward.__wrapped__(module, hidden, indices, weights)
    return y


_library.impl("experts", _run, "CompositeExplicitAutograd")
