"""From the names in a checkpoint to those of `BloomForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.layers import Heads
from pipezoo_core.weights import LazyTensor, divided, renamed_from_gguf, without_redundant
from pipezoo_gpt.fused_heads import divided_by_head

__all__ = ["adapt_bloom", "adapt_bloom_gguf"]

_EMBEDDING = "transformer.word_embeddings.weight"
_GGUF_NAMES = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}


def adapt_bloom(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Queries, keys and values of each head lie side by side. The published checkpoints' names have no prefix."""
    heads = Heads(config.n_head, config.n_head, config.hidden_size // config.n_head)
    found: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = key if key.startswith(("transformer.", "lm_head.")) else f"transformer.{key}"
        found |= divided_by_head(name, tensor, heads)
    return without_redundant(found, config, embedding=_EMBEDDING)


def adapt_bloom_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """All queries lie before all keys, and these before all values."""
    parts = dict.fromkeys(("q_proj", "k_proj", "v_proj"), config.hidden_size)
    found: dict[str, LazyTensor] = {}
    for key, tensor in renamed_from_gguf(tensors, names=_GGUF_NAMES).items():
        name = key.replace("model.layers.", "transformer.h.")
        found |= divided(name, tensor, "query_key_value", parts) if ".query_key_value." in name else {name: tensor}
    return without_redundant(found, config, embedding=_EMBEDDING)
