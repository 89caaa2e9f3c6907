"""From the names in a checkpoint to those of `BloomForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, without_redundant
from pipezoo_gpt.bloom.config import BloomConfig
from pipezoo_gpt.fused_heads import SORTED, divided_by_head, divided_from_gguf

__all__ = ["adapt_bloom", "adapt_bloom_gguf"]

_EMBEDDING = "transformer.word_embeddings.weight"
_GGUF_NAMES = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
    "attn_norm": "input_layernorm",
    "attn_qkv": f"self_attention.{SORTED}",
    "attn_output": "self_attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}


def adapt_bloom(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Queries, keys and values of each head lie side by side. The published checkpoints' names have no prefix."""
    heads = BloomConfig.from_huggingface(config).heads
    found: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = key if key.startswith(("transformer.", "lm_head.")) else f"transformer.{key}"
        found |= divided_by_head(name, tensor, heads)
    return without_redundant(found, config, embedding=_EMBEDDING)


def adapt_bloom_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """All queries lie before all keys, and these before all values, but head by head in a LoRA adapter."""
    heads = BloomConfig.from_huggingface(config).heads
    found = divided_from_gguf(tensors, heads, names=_GGUF_NAMES, layers="transformer.h")
    return adapt_bloom(found, config)
