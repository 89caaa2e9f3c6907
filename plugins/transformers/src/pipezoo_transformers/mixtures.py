"""Which mixtures of experts of transformers are core's, found by computing with them.

transformers' experts interface says how a module's weights lie. What an expert makes of gate and up, and where the
weights of the choice come in, is seen by comparing a copy with small weights of random numbers with core's formula.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipezoo_core.layers import ACTIVATIONS, ClampedGate, Experts, KernelUse
from pipezoo_transformers.comparison import ACTIVATION_NAMES, INPUTS, RandomNumbers, is_near
from pipezoo_transformers.experts import has_experts

__all__ = ["Mixture", "RowsExperts", "mixture_like"]

_MAX_EXPERTS, _MAX_CHOSEN, _HIDDEN, _INNER = 3, 2, 6, 10  # of the copy
_ACTIVATIONS: tuple[str | ClampedGate, ...] = (*ACTIVATION_NAMES, ClampedGate())
_MOST_LANES = 16  # numbers of a vector, with which a kernel computes gate and up


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What core needs to know of a mixture to compute it, and to find its weights.

    Attributes:
        num_experts: of the layer.
        top_k: experts per token.
        hidden_size: numbers per input and output row.
        intermediate_size: numbers per row inside an expert.
        activation: see `Experts`.
        bias: likewise.
        is_transposed: whether a matrix of transformers' stack is [in, out].
        is_interleaved: whether outputs of gate and up are in turn there; else those of gate are the first half.
    """

    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    activation: str | ClampedGate
    bias: bool
    is_transposed: bool
    is_interleaved: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of transformers' stacks, by their names in the module."""
        sizes = (self.num_experts, self.hidden_size, self.intermediate_size)
        return _shapes(*sizes, is_transposed=self.is_transposed, bias=self.bias)

    @property
    def alone(self) -> Mixture:
        """The same with a single expert, which says what there is to know of any, and is made sooner than all."""
        return replace(self, num_experts=1)

    @property
    def has_kernel(self) -> bool:
        """Whether there is one for its activation and sizes on every CPU that has kernels.

        It is not asked which CPU this is: names of weights that are written here are read elsewhere.
        """
        is_even = self.intermediate_size % _MOST_LANES == 0 and self.hidden_size % 2 == 0
        return is_even and self.alone.made().experts[0].native_activation is not None

    def made(self) -> RowsExperts:
        """Returns core's layer, on the meta device."""
        with torch.device("meta"):
            return RowsExperts(self)


class RowsExperts(Experts):
    """`Experts` that are called as transformers' modules are.

    They are no `Estimable`, for the reason that `RowsGatedMLP` is none.

    Args:
        mixture: that they are.
    """

    alive = None  # type: ignore[assignment]  # of a protocol, a method that is None is not there

    def __init__(self, mixture: Mixture) -> None:
        sizes = (mixture.hidden_size, mixture.intermediate_size, mixture.num_experts, mixture.top_k)
        super().__init__(*sizes, mixture.activation, bias=mixture.bias)

    def most_alive(self, kernels: KernelUse) -> int:
        """Returns the numbers per token that are alive in it at once."""
        return sum(super().alive(kernels))

    def forward(self, x_TH: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Maps [T, H] to [T, H]; the weights may have the dtype of x."""
        assert x_TH.dim() == 2, "its own code takes rows"
        assert indices_TK.shape == weights_TK.shape, "its own code takes a weight of each choice"
        assert indices_TK.shape[-1] == self.top_k, "a step that was followed chose as many"
        if x_TH.is_meta:  # of a step that is followed, which has no numbers to choose by
            return torch.empty_like(x_TH)
        return super().forward(x_TH, indices_TK, weights_TK.float())


def mixture_like(module: nn.Module, top_k: int) -> Mixture | None:
    """Returns what core's layer needs to compute what a module does; None where it, or its kernel, does not do that.

    Without the kernel, which experts have rows is read on the host, and no step is replayed.

    Args:
        module: of transformers.
        top_k: experts per token that it was asked for.
    """
    if not has_experts(module) or module._buffers or _has_weights(module.children()):
        return None
    its: Any = module
    form = {"is_transposed": its.is_transposed, "bias": its.has_bias}
    shapes = {name: tuple(stack.shape) for name, stack in module._parameters.items() if stack is not None}
    num_experts, *sizes = shapes.get("down_proj", (0,))
    if len(sizes) != 2:
        return None
    hidden, inner = reversed(sizes) if its.is_transposed else sizes
    if shapes != _shapes(num_experts, hidden, inner, **form):
        return None
    activation = _activation(module, num_experts, **form)
    if activation is None:
        return None
    mixture = Mixture(
        num_experts=num_experts,
        top_k=top_k,
        hidden_size=hidden,
        intermediate_size=inner,
        activation=activation,
        is_interleaved=not its.is_concatenated,
        **form,
    )
    return mixture if mixture.has_kernel else None


def _has_weights(modules: Iterator[nn.Module]) -> bool:
    return any([*module.parameters(), *module.buffers()] for module in modules)


def _shapes(
    num_experts: int, hidden: int, inner: int, *, is_transposed: bool, bias: bool
) -> dict[str, tuple[int, ...]]:
    step = -1 if is_transposed else 1
    matrices = {"gate_up_proj": (2 * inner, hidden)[::step], "down_proj": (hidden, inner)[::step]}
    biases = {"gate_up_proj_bias": (2 * inner,), "down_proj_bias": (hidden,)} if bias else {}
    return {name: (num_experts, *shape) for name, shape in (matrices | biases).items()}


@torch.no_grad()
def _activation(module: nn.Module, num_experts: int, *, is_transposed: bool, bias: bool) -> str | ClampedGate | None:
    """Returns what becomes of gate and up, where all else is as core has it.

    It takes for granted that the module does to every expert what it does to the first ones: nothing in it tells them
    apart but their weights.
    """
    random = RandomNumbers()
    num_experts = min(num_experts, _MAX_EXPERTS)  # a module may count its own
    num_chosen = min(num_experts, _MAX_CHOSEN)
    sizes = (num_experts, _HIDDEN, _INNER)
    stacks = {name: random(*shape) for name, shape in _shapes(*sizes, is_transposed=is_transposed, bias=bias).items()}
    its: Any = copy.copy(module)
    its._parameters = {name: nn.Parameter(stack, requires_grad=False) for name, stack in stacks.items()}
    steps = [
        (size * random(rows, _HIDDEN), random(rows, num_experts).argsort()[:, :num_chosen], random(rows, num_chosen))
        for size, rows in INPUTS
    ]
    with torch.device("cpu"):
        try:
            results = [type(its).forward.__wrapped__(its, *step) for step in steps]
        except Exception:  # a module of any other kind
            return None
        for activation in _ACTIVATIONS:
            computed = (_computed(activation, stacks, step, its) for step in steps)
            if all(map(is_near, results, computed)):
                return activation
    return None


def _computed(
    activation: str | ClampedGate, stacks: dict[str, Tensor], step: tuple[Tensor, Tensor, Tensor], form: Any
) -> Tensor:
    x_TH, chosen_TK, weights_TK = step
    gate_up_ETI = _product(x_TH, "gate_up_proj", stacks, form)
    if form.is_concatenated:
        gate, up = gate_up_ETI.chunk(2, dim=-1)
    else:
        gate, up = gate_up_ETI[..., ::2], gate_up_ETI[..., 1::2]
    inner_ETI = activation(gate, up) if isinstance(activation, ClampedGate) else ACTIVATIONS[activation](gate) * up
    products_TEH = _product(inner_ETI, "down_proj", stacks, form).transpose(0, 1)
    chosen_TKH = products_TEH.take_along_dim(chosen_TK.unsqueeze(-1), dim=1)
    return (chosen_TKH * weights_TK.unsqueeze(-1)).sum(1)


def _product(x: Tensor, name: str, stacks: dict[str, Tensor], form: Any) -> Tensor:
    matrices = stacks[name] if form.is_transposed else stacks[name].transpose(1, 2)
    biases = stacks.get(f"{name}_bias")
    return x @ matrices if biases is None else x @ matrices + biases.unsqueeze(1)
