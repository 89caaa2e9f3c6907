"""From the names in a checkpoint to those of `OlmoForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, without_redundant

__all__ = ["adapt_safetensors"]


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own."""
    return without_redundant(tensors, config, embedding="model.embed_tokens.weight")
