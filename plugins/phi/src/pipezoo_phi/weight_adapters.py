"""From the names in a checkpoint to those of `PhiForCausalLM` and `Phi3ForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, without_redundant

__all__ = ["adapt_phi", "adapt_phi3"]


def adapt_phi(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own."""
    return without_redundant(tensors, config, embedding="model.embed_tokens.weight")


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
        parts = next((parts for layer, parts in fused.items() if name.endswith(f".{layer}.weight")), {})
        found |= _divided(name, tensor, parts)
    return adapt_phi(found, config)


def _divided(name: str, tensor: LazyTensor, parts: Mapping[str, int]) -> dict[str, LazyTensor]:
    """Returns parts of so many rows by their names; what has another number of rows is left as it is, and reported."""
    if tensor.shape[0] != sum(parts.values()):
        return {name: tensor}
    prefix = name.removesuffix(".weight").rpartition(".")[0]
    bounds = pairwise(accumulate(parts.values(), initial=0))
    return {
        f"{prefix}.{part}.weight": tensor.rows(slice(first, end))
        for part, (first, end) in zip(parts, bounds, strict=True)
    }
