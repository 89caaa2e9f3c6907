"""Which modules of transformers are core's gated feed-forward layer, found by computing with them.

Their classes have a name in every model, and say in many ways which linear layer is the gate. A copy of the module with
small layers of random numbers is compared with what core's layer computes of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipezoo_core.layers import ACTIVATIONS, GatedMLP, MergedLinear
from pipezoo_transformers.comparison import ACTIVATION_NAMES, INPUTS, RandomNumbers, is_near

__all__ = ["RowsGatedMLP", "gated_like"]

_DOWN = "down_proj"
_HIDDEN, _INNER = 6, 10  # of the copy


class _Layout(NamedTuple):
    """Which linear layers there are before the last one.

    Attributes:
        names: gate, then what it lets through; or one, which is both side by side.
        activation: a name of core's.
    """

    names: tuple[str, ...]
    activation: str


class RowsGatedMLP(GatedMLP):
    """A `GatedMLP` that is given the rows of a step as transformers shapes them, under transformers' names.

    It is no `Estimable`: what is alive beside it in a layer of transformers it cannot know, so that the memory plan
    takes what it does of models that say nothing.

    Args:
        hidden_size: numbers per input and output row.
        intermediate_size: numbers per row in between.
        activation: a name of core's.
        names: of the linear layers before the last one: gate, then what it lets through; or one, which is both side by
            side.
        bias: whether the linear layers have one.
    """

    alive = None  # type: ignore[assignment]  # of a protocol, a method that is None is not there

    def __init__(
        self, hidden_size: int, intermediate_size: int, activation: str, names: Sequence[str], *, bias: bool
    ) -> None:
        super().__init__(hidden_size, intermediate_size, activation, bias=bias)
        width = 2 * intermediate_size // len(names)
        self.gate_up_proj = MergedLinear(hidden_size, dict.fromkeys(names, width), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., hidden_size] to [..., hidden_size]."""
        y: Tensor = super().forward(x.flatten(0, -2))
        return y.unflatten(0, x.shape[:-1])


def gated_like(module: nn.Module) -> RowsGatedMLP | None:
    """Returns core's layer that computes what a module does, on the meta device; None where there is none."""
    linears = {name: child for name, child in module.named_children() if type(child) is nn.Linear}
    down = linears.pop(_DOWN, None)
    others = [child for name, child in module.named_children() if name not in linears and name != _DOWN]
    has_more = any([*child.parameters(), *child.buffers()] for child in others)
    if down is None or len(linears) not in (1, 2) or has_more or module._parameters or module._buffers:
        return None
    hidden, inner = down.out_features, down.in_features
    sizes = {(linear.in_features, linear.out_features) for linear in linears.values()}
    has_bias = {linear.bias is not None for linear in (down, *linears.values())}
    if sizes != {(hidden, 2 * inner // len(linears))} or len(has_bias) > 1:
        return None
    layout = _layout(module, list(linears), bias=down.bias is not None)
    if layout is None:
        return None
    with torch.device(down.weight.device):
        return RowsGatedMLP(hidden, inner, layout.activation, layout.names, bias=down.bias is not None)


@torch.no_grad()
def _layout(module: nn.Module, names: list[str], *, bias: bool) -> _Layout | None:
    random = RandomNumbers()

    def linear(in_features: int, out_features: int) -> nn.Linear:
        layer = nn.Linear(in_features, out_features, bias=bias, dtype=torch.float64, device="cpu")
        for parameter in layer.parameters():
            parameter.copy_(random(*parameter.shape))
        return layer

    width = 2 * _INNER // len(names)
    linears = {**{name: linear(_HIDDEN, width) for name in names}, _DOWN: linear(_INNER, _HIDDEN)}
    its = copy.copy(module)
    its._modules = {**module._modules, **linears}
    inputs = [size * random(1, num_rows, _HIDDEN) for size, num_rows in INPUTS]
    with torch.device("cpu"):
        try:
            results = [its(x) for x in inputs]
        except Exception:  # a module of any other kind
            return None
        outputs = [{name: linears[name](x).split(_INNER, dim=-1) for name in names} for x in inputs]
        for layout in _layouts(names):
            expected = (_computed(layout, parts, linears[_DOWN]) for parts in outputs)
            if all(map(is_near, results, expected)):
                return layout
    return None


def _computed(layout: _Layout, outputs: dict[str, tuple[Tensor, ...]], down: nn.Linear) -> Tensor:
    gate, up = (part for name in layout.names for part in outputs[name])
    y: Tensor = down(ACTIVATIONS[layout.activation](gate) * up)
    return y


def _layouts(names: list[str]) -> Iterator[_Layout]:
    for order in permutations(names):
        for activation in ACTIVATION_NAMES:
            yield _Layout(order, activation)
