"""From the names in a checkpoint to those of `OlmoForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, in_halves, renamed_from_gguf, without_redundant

__all__ = ["adapt_gguf", "adapt_safetensors"]

_GGUF_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own."""
    return without_redundant(tensors, config)


def adapt_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own, and stores q and k of OLMo, not of later ones, for a rotation of neighbours."""
    if config.model_type != "olmo":
        return renamed_from_gguf(tensors, names=_GGUF_NORMS)
    changes = {"attn_q": in_halves(config.num_attention_heads), "attn_k": in_halves(config.num_key_value_heads)}
    return renamed_from_gguf(tensors, changes)
