"""From the names in a checkpoint to those of `LlamaForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, in_halves, renamed_from_gguf, without_redundant

__all__ = ["adapt_gguf", "adapt_safetensors"]


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own."""
    return without_redundant(tensors, config)


def adapt_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own, and stores q and k for a rotation of neighbours instead of halves."""
    changes = {"attn_q": in_halves(config.num_attention_heads), "attn_k": in_halves(config.num_key_value_heads)}
    return renamed_from_gguf(tensors, changes)
