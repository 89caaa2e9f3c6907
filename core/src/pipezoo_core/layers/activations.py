"""Activation functions, by the names that Hugging Face configs use.

The reference is transformers' `ACT2FN`. It is not used, because importing it brings in torch's compiler and tensors of
many devices: a second, and 80 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.native import Activation

__all__ = ["ACTIVATIONS", "ClampedGate", "known_activation", "native_activation"]

_gelu_tanh = partial(F.gelu, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _linear(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": F.gelu,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "linear": _linear,
    "mish": F.mish,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu2": _relu2,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
"""What each name computes, number by number."""

_NATIVE: Mapping[Callable[[Tensor], Tensor], Activation] = {
    F.gelu: Activation.gelu,
    F.relu: Activation.relu,
    F.silu: Activation.silu,
    torch.sigmoid: Activation.sigmoid,
    torch.tanh: Activation.tanh,
    _gelu_tanh: Activation.gelu_tanh,
    _quick_gelu: Activation.quick_gelu,
    _relu2: Activation.relu2,
}


@dataclass(frozen=True, slots=True)
class ClampedGate:
    """`gate · sigmoid(alpha · gate) · (up + 1)` of clamped numbers, as transformers' `modeling_gpt_oss` computes it.

    Attributes:
        limit: gate is at most that, and up between that and its negative.
        alpha: how steep the sigmoid is.
    """

    limit: float = 7.0
    alpha: float = 1.702

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        """Maps twice [T, I] to [T, I]."""
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (self.alpha * gate).sigmoid_().mul_(gate).mul_(up.add_(1))


def known_activation(name: str) -> str:
    """Returns the name of an activation.

    Raises:
        UnsupportedModelError: it is none of `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise UnsupportedModelError("the activation function is unknown", found=name, allowed=sorted(ACTIVATIONS))
    return name


def native_activation(activation: str | ClampedGate) -> Activation | None:
    """Returns what the kernels call an activation, by its name in `ACTIVATIONS`; None where they have no such one."""
    if isinstance(activation, ClampedGate):
        return Activation.clamped if activation == ClampedGate() else None
    return _NATIVE.get(ACTIVATIONS[activation])
