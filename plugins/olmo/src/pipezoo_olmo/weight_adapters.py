"""From the names in a checkpoint to those of `OlmoForCausalLM`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from transformers import PretrainedConfig

from pipezoo_core.layers import halves
from pipezoo_core.weights import LazyTensor, renamed_from_gguf, without_redundant

__all__ = ["adapt_gguf", "adapt_safetensors"]

_GGUF_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own."""
    return without_redundant(tensors, config, embedding="model.embed_tokens.weight")


def adapt_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own, and stores q and k of OLMo, not of later ones, for a rotation of neighbours."""
    if config.model_type != "olmo":
        return renamed_from_gguf(tensors, names=_GGUF_NORMS)
    changes = {"attn_q": _in_halves(config.num_attention_heads), "attn_k": _in_halves(config.num_key_value_heads)}
    return renamed_from_gguf(tensors, changes)


def _in_halves(num_heads: int) -> Callable[[LazyTensor], LazyTensor]:
    def change(tensor: LazyTensor) -> LazyTensor:
        head_dim = tensor.shape[0] // num_heads
        return tensor.then(halves(head_dim), num_rows=head_dim)

    return change
