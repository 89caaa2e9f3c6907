"""From the names in a checkpoint to those of `MptForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor

__all__ = ["adapt_safetensors"]


def adapt_safetensors(tensors: Mapping[str, LazyTensor], _config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own; a head that is stored next to the embedding is the embedding once more."""
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
