"""transformers' own class for a config, without numbers: parameters on the meta device, tables of positions real."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_transformers.experts import has_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["OUTSIDE", "body_of", "class_of", "outline_of_transformers"]

OUTSIDE = "the model's attention is not computed through transformers' attention interface"


def class_of(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Returns the class with a head that transformers has for causal language models of this type.

    Raises:
        UnsupportedModelError: it has none.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return cast("type[PreTrainedModel]", MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    # of a part of a config, which has no entry of its own
    for found in cast("list[type[PreTrainedModel]]", MODEL_FOR_CAUSAL_LM_MAPPING.values()):
        if found.config_class is type(config):
            return found
    raise UnsupportedModelError("transformers has no causal language model of this type", found=config.model_type)


def outline_of_transformers(config: PretrainedConfig, implementation: str) -> PreTrainedModel:
    """Returns the model, its parameters on the meta device, in float32, its buffers with their numbers.

    Args:
        config: is not changed.
        implementation: name of attention, registered with transformers, and of the computation of experts, where
            transformers lets one choose.

    Raises:
        UnsupportedModelError: a buffer's numbers are known to no one.
    """
    from transformers import PreTrainedModel

    config = copy.deepcopy(config)
    config._attn_implementation = implementation
    try:
        with torch.device("meta"):
            model = class_of(config)(config)
    except KeyError as error:
        if error.args != (implementation,):
            raise
        raise UnsupportedModelError(OUTSIDE, found=class_of(config).__name__) from error
    owners: dict[str, PreTrainedModel] = {}
    for name, module in model.named_modules():
        owners[name] = module if isinstance(module, PreTrainedModel) else owners[name.rpartition(".")[0]]
        if has_experts(module):
            module.config._experts_implementation = implementation
        _make_buffers(owners[name], name, module)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _make_buffers(owner: PreTrainedModel, prefix: str, module: nn.Module) -> None:
    """Computes the buffers that no checkpoint has as transformers does after loading; the others become parameters."""
    for name in [name for name, buffer in module._buffers.items() if buffer is not None]:
        buffer = module._buffers[name]
        assert buffer is not None
        if name in module._non_persistent_buffers_set:
            module._buffers[name] = _unknown(buffer)
        elif buffer.is_floating_point():
            del module._buffers[name]
            module.register_parameter(name, nn.Parameter(buffer, requires_grad=False))
    if not any(buffer is not None for buffer in module._buffers.values()):
        return
    with torch.device("cpu"):
        owner._init_weights(module)
    for name, computed in module._buffers.items():
        if computed is not None and computed.is_floating_point() and computed.isnan().any():
            raise UnsupportedModelError(
                "a table of the model cannot be computed from its config", found=f"{prefix}.{name}"
            )


def _unknown(buffer: Tensor) -> Tensor:
    real = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
    return real.fill_(torch.nan) if real.is_floating_point() else real.zero_()


def body_of(model: PreTrainedModel) -> nn.Module:
    """Returns what a model is besides its head: what maps tokens to hidden states.

    Raises:
        UnsupportedModelError: transformers does not say which part that is.
    """
    for name in (f"{model.base_model_prefix}.decoder", model.base_model_prefix, "model"):
        try:
            body = model.get_submodule(name) if name else model
        except AttributeError:
            continue
        if body is not model:
            return body
    raise UnsupportedModelError("the model cannot be told from its head", found=type(model).__name__)
