"""From the names in a checkpoint to those of `PhiForCausalLM` and `Phi3ForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, divided, without_redundant

__all__ = ["adapt_phi", "adapt_phi3"]


def adapt_phi(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own."""
    return without_redundant(tensors, config)


def adapt_phi3(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Queries, keys and values are the rows of one matrix, and so are the two halves of the feed-forward layer."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    fused = {
        "qkv_proj": {"q_proj": queries, "k_proj": keys, "v_proj": keys},
        "gate_up_proj": dict.fromkeys(("gate_proj", "up_proj"), config.intermediate_size),
    }
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        layer = next((layer for layer in fused if name.endswith(f".{layer}.weight")), None)
        found |= {name: tensor} if layer is None else divided(name, tensor, layer, fused[layer])
    return adapt_phi(found, config)
