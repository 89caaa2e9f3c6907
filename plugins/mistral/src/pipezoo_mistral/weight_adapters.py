"""From the names in a checkpoint to those of `MistralForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import (
    LazyTensor,
    in_halves,
    of_text_part,
    renamed_from_gguf,
    with_experts_divided,
    without_redundant,
)

__all__ = ["adapt_gguf", "adapt_mixtral", "adapt_safetensors", "adapt_text_part"]

_MIXTRAL = {".block_sparse_moe.": ".mlp.", ".w1.": ".gate_proj.", ".w2.": ".down_proj.", ".w3.": ".up_proj."}


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own."""
    return without_redundant(tensors, config)


def adapt_text_part(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Of a Mistral 3 that also sees, leaves out what makes tokens of images."""
    return adapt_safetensors(of_text_part(tensors), config)


def adapt_mixtral(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Mixtral's experts have names of their own."""
    named = {}
    for name, tensor in tensors.items():
        for theirs, ours in _MIXTRAL.items():
            name = name.replace(theirs, ours)
        named[name] = tensor
    return adapt_safetensors(with_experts_divided(named), config)


def adapt_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own, and stores q and k for a rotation of neighbours instead of halves."""
    changes = {"attn_q": in_halves(config.num_attention_heads), "attn_k": in_halves(config.num_key_value_heads)}
    return with_experts_divided(renamed_from_gguf(tensors, changes))
