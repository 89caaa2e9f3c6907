"""From the names in a checkpoint to those of `PhiForCausalLM` and `Phi3ForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, divided, renamed_from_gguf, without_redundant

__all__ = ["adapt_phi", "adapt_phi3", "adapt_phi3_gguf", "adapt_phi_gguf"]

_FUSED = {"attn_qkv": "self_attn.qkv_proj"}
_PHI_GGUF = {
    **_FUSED,
    "attn_output": "self_attn.dense",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
    "output_norm": "model.final_layernorm",
}
_PHI3_GGUF = {**_FUSED, "ffn_up": "mlp.gate_up_proj"}


def adapt_phi(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own."""
    return without_redundant(tensors, config)


def adapt_phi3(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Queries, keys and values are the rows of one matrix, and so are the two halves of the feed-forward layer."""
    return without_redundant(_parted(tensors, config), config)


def adapt_phi_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own; queries, keys and values lie in one matrix in older files, and apart in later ones."""
    return _parted(renamed_from_gguf(tensors, names=_PHI_GGUF), config)


def adapt_phi3_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own; gate and up are the halves of one matrix, `ffn_up`."""
    return _parted(renamed_from_gguf(tensors, names=_PHI3_GGUF), config)


def _parted(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Returns the parts of fused layers, their biases too, and the other tensors as they are.

    A fused layer beside a part of its own is left as it is, to be reported as left over.
    """
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    fused = {
        "qkv_proj": {"q_proj": queries, "k_proj": keys, "v_proj": keys},
        "gate_up_proj": dict.fromkeys(("gate_proj", "up_proj"), config.intermediate_size),
    }
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        layer = next((layer for layer in fused if name.endswith((f".{layer}.weight", f".{layer}.bias"))), None)
        parts = {name: tensor} if layer is None else divided(name, tensor, layer, fused[layer])
        found |= {name: tensor} if parts.keys() & tensors.keys() else parts
    return found
