"""From the names in a checkpoint to those of `GemmaForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, of_text_part, renamed_from_gguf, without_redundant

__all__ = ["adapt_gguf", "adapt_safetensors", "adapt_text_part"]

_GGUF_NORMS = {  # of layers that also normalize what they add; Gemma's first are called like Llama's
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ALL_GGUF_NORMS = ("attn_k_norm", "attn_norm", "attn_q_norm", "output_norm", *_GGUF_NORMS)


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own."""
    return without_redundant(tensors, config)


def adapt_text_part(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Of a Gemma 3 that also sees, leaves out what makes tokens of images."""
    return adapt_safetensors(of_text_part(tensors), config)


def adapt_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own, and weights of norms with the 1 added; q and k are stored for a rotation of halves."""
    names = {} if config.model_type == "gemma" else _GGUF_NORMS
    return renamed_from_gguf(tensors, dict.fromkeys(_ALL_GGUF_NORMS, _without_the_one), names)


def _without_the_one(weight: LazyTensor) -> LazyTensor:
    return weight.then(_minus_one, num_rows=1)


def _minus_one(weight: Tensor) -> Tensor:
    return weight - 1
