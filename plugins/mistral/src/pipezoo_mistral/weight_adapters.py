"""From the names in a checkpoint to those of `MistralForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor

__all__ = ["adapt_safetensors"]


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own, but for a head that is the embedding once more."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (config.tie_word_embeddings and name == "lm_head.weight")
    }
