"""From the names in a checkpoint to those of `MptForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, without_redundant

__all__ = ["adapt_safetensors"]

_REPLIT_NAMES = {
    "ln_1": "norm_1",
    "ln_2": "norm_2",
    "ln_f": "norm_f",
    "mlp": "ffn",
    "mlp_down": "down_proj",
    "mlp_up": "up_proj",
}


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own, but for Replit's first model."""
    renamed = {
        ".".join(_REPLIT_NAMES.get(part, part) for part in name.split(".")): tensor for name, tensor in tensors.items()
    }
    return without_redundant(renamed, config, embedding="transformer.wte.weight")
