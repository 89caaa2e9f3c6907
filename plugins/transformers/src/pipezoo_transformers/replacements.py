"""Core's layers in place of transformers', so that kernels, quantization and adapters follow.

What has no counterpart stays what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

from torch import Tensor, nn

from pipezoo_core.layers import Embedding, Linear, LMHead
from pipezoo_transformers.gates import RowsGatedMLP, gated_like
from pipezoo_transformers.merged_layers import merge
from pipezoo_transformers.mixtures import Mixture
from pipezoo_transformers.norms import norm_like

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["replace_layers"]


def replace_layers(
    model: PreTrainedModel,
    kept: Set[str],
    merged: Sequence[Sequence[str]] | None,
    mixtures: Mapping[str, Mixture],
) -> None:
    """Replaces what it can of a model on the meta device, and ties the weights that transformers ties.

    Args:
        model: of transformers.
        kept: names of linear layers that stay.
        merged: names of linear layers of one module that become one; None where no layers are joined.
        mixtures: by the names of their modules.
    """
    if merged is not None:
        _replace_gates(model, kept)
        for names in merged:
            prefix = names[0].rpartition(".")[0]
            parent = model.get_submodule(prefix)
            if not isinstance(parent, RowsGatedMLP):
                merge(parent, [name.removeprefix(f"{prefix}.") for name in names])
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    for prefix, parent in list(model.named_modules()):
        for name, child in parent.named_children():
            if child is head and type(child) is nn.Linear:
                parent._modules[name] = _head(child)
            elif child is embedding and type(child) is nn.Embedding:
                parent._modules[name] = RowsEmbedding(*child.weight.shape)
            elif type(child) is nn.Linear and f"{prefix}.{name}".lstrip(".") not in kept:
                parent._modules[name] = RowsLinear(child.in_features, child.out_features, bias=child.bias is not None)
            elif norm := norm_like(child):
                parent._modules[name] = norm
        for name, parameter in parent._parameters.items():
            if parameter is not None and not parameter.dim():  # a checkpoint's tensors have a dimension at least
                parent._parameters[name] = nn.Parameter(parameter.unsqueeze(0), requires_grad=False)
    for name, mixture in mixtures.items():
        model.set_submodule(name, mixture.made())
    for target, source in model.all_tied_weights_keys.items():
        _tie(model, target, source)


def _replace_gates(model: PreTrainedModel, kept: Set[str]) -> None:
    for prefix, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            is_kept = any(f"{prefix}.{name}.{linear}".lstrip(".") in kept for linear, _ in child.named_children())
            if not is_kept and (gated := gated_like(child)):
                parent._modules[name] = gated


class RowsLinear(Linear):
    """A `Linear` that is given the rows of a step as transformers shapes them, [1, T, in_features]."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        y: Tensor = super().forward(x.flatten(0, -2))
        return y.unflatten(0, x.shape[:-1])


class RowsEmbedding(Embedding):
    """An `Embedding` that is given tokens as transformers shapes them, [1, T]."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps int64 [...] to [..., size]."""
        rows: Tensor = super().forward(tokens.flatten())
        return rows.unflatten(0, tokens.shape)


def _head(linear: nn.Linear) -> LMHead:
    head = LMHead(linear.in_features, linear.out_features)
    head.bias = linear.bias
    return head


def _tie(model: PreTrainedModel, target: str, source: str) -> None:
    (to, to_name), (of, of_name) = (_owner(model, name) for name in (target, source))
    if isinstance(to, LMHead) and isinstance(of, Embedding):
        shared = LMHead.sharing(of)
        shared.bias = to.bias
        model.set_submodule(target.rpartition(".")[0], shared)
    else:
        to._parameters[to_name] = of._parameters[of_name]


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, parameter = name.rpartition(".")
    return model.get_submodule(module), parameter
