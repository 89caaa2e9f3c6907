"""From the names in a checkpoint to those of `FalconForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, divided, renamed_from_gguf, without_redundant
from pipezoo_gpt.falcon.config import FalconConfig
from pipezoo_gpt.fused_heads import divided_by_head

__all__ = ["adapt_falcon", "adapt_falcon_gguf"]

_EMBEDDING = "transformer.word_embeddings.weight"
_ATTENTION_NORM, _MLP_NORM = "input_layernorm", "post_attention_layernorm"
_GGUF_NAMES = {
    "token_embd": "transformer.word_embeddings",
    "output_norm": "transformer.ln_f",
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "attn_norm_2": _ATTENTION_NORM,
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}


def adapt_falcon(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Queries of each key/value head, its key and its value lie side by side. Norms have names of their own if two."""
    heads = FalconConfig.from_huggingface(config).heads
    found: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = key.replace(".ln_attn.", f".{_ATTENTION_NORM}.").replace(".ln_mlp.", f".{_MLP_NORM}.")
        found |= divided_by_head(name, tensor, heads)
    return without_redundant(found, config, embedding=_EMBEDDING)


def adapt_falcon_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """All queries lie before all keys, and these before all values. Of two norms, the first is the MLP's."""
    typed = FalconConfig.from_huggingface(config)
    queries, keys = typed.heads.queries.size, typed.heads.keys.size
    parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    names = {**_GGUF_NAMES, "attn_norm": _MLP_NORM if typed.has_mlp_norm else _ATTENTION_NORM}
    found: dict[str, LazyTensor] = {}
    for key, tensor in renamed_from_gguf(tensors, names=names).items():
        name = key.replace("model.layers.", "transformer.h.")
        found |= divided(name, tensor, "query_key_value", parts) if ".query_key_value." in name else {name: tensor}
    return without_redundant(found, config, embedding=_EMBEDDING)
