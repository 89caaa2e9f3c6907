"""From the names in a checkpoint to those of `Lfm2ForCausalLM`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, renamed_from_gguf, with_a_channel, without_redundant

__all__ = ["adapt_gguf", "adapt_safetensors"]

_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_GGUF_NAMES = {
    "token_embd_norm": "model.embedding_norm",
    "attn_norm": "operator_norm",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "attn_output": "self_attn.out_proj",
    "shortconv_conv": "conv.conv",
    "shortconv_in_proj": "conv.in_proj",
    "shortconv_out_proj": "conv.out_proj",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.gate_proj",
    "ffn_up": "feed_forward.up_proj",
    "ffn_down": "feed_forward.down_proj",
}
_FEED_FORWARD = re.compile(r"(?<=\.feed_forward\.)w[123](?=\.)")


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own, but for those of the feed-forward layers."""
    named = {_FEED_FORWARD.sub(lambda match: _NAMES[match[0]], name): tensor for name, tensor in tensors.items()}
    return without_redundant(named, config)


def adapt_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own, of which those of convolutions have a dot more, and no dimension for one channel."""
    del config
    named = {name.replace(".shortconv.", ".shortconv_"): tensor for name, tensor in tensors.items()}
    return renamed_from_gguf(named, {"shortconv_conv": with_a_channel}, _GGUF_NAMES)
