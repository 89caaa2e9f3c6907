"""From the names in a checkpoint to those of `Lfm2ForCausalLM`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import (
    LazyTensor,
    renamed_from_gguf,
    with_a_channel,
    with_experts_divided,
    with_experts_unstacked,
    without_redundant,
)

__all__ = ["adapt_gguf", "adapt_safetensors"]

_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_GGUF_NAMES = {
    "token_embd_norm": "model.embedding_norm",
    "attn_norm": "operator_norm",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "attn_output": "self_attn.out_proj",
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.gate_proj",
    "ffn_up": "feed_forward.up_proj",
    "ffn_down": "feed_forward.down_proj",
    "ffn_gate_inp": "feed_forward.gate",
    "exp_probs_b.bias": "feed_forward.expert_bias",
}
_FEED_FORWARD = re.compile(r"(\.feed_forward\.(?:experts\.\d+\.)?)(w[123])(?=\.)")
_CORRECTION = ".feed_forward.gate.e_score_correction_bias"


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own, but for those of the feed-forward layers.

    All experts of a layer may be one tensor, and gate and up one matrix, as transformers has them.
    """
    found: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = _FEED_FORWARD.sub(lambda match: match[1] + _NAMES[match[2]], key)
        found[name.replace(".feed_forward.expert_bias", _CORRECTION)] = tensor
    return without_redundant(with_experts_divided(with_experts_unstacked(found)), config)


def adapt_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own, and no dimension for a convolution's one channel.

    The names of a LoRA adapter are those of the checkpoint that it was trained on: they become the module's, too.
    """
    changes = {"shortconv.conv": with_a_channel}
    return adapt_safetensors(renamed_from_gguf(tensors, changes, _GGUF_NAMES, experts="feed_forward.experts"), config)
