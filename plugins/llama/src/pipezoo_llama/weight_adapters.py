"""From the names in a checkpoint to those of `LlamaForCausalLM`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.layers import halves
from pipezoo_core.weights import LazyTensor, without_redundant

__all__ = ["adapt_gguf", "adapt_safetensors"]

_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_LAYER = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own."""
    return without_redundant(tensors, config, embedding="model.embed_tokens.weight")


def adapt_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own, and stores q and k for a rotation of neighbours instead of halves."""
    num_heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    adapted = {}
    for name, tensor in tensors.items():
        if name == "rope_freqs.weight":  # the config has it
            continue
        match = _GGUF_LAYER.fullmatch(name)
        if match is None or match[2] not in _GGUF_NAMES:
            adapted[name] = tensor
            continue
        layer, kind, parameter = match.groups()
        prefix = "" if layer is None else f"model.layers.{layer}."
        if kind in num_heads:
            head_dim = tensor.shape[0] // num_heads[kind]
            tensor = tensor.then(halves(head_dim), num_rows=head_dim)
        adapted[f"{prefix}{_GGUF_NAMES[kind]}.{parameter}"] = tensor
    return adapted
