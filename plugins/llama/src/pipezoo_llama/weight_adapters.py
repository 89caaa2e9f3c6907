"""From the names in a checkpoint to those of `LlamaForCausalLM`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from transformers import PretrainedConfig

from pipezoo_core.layers import halves
from pipezoo_core.weights import LazyTensor, renamed_from_gguf, without_redundant

__all__ = ["adapt_gguf", "adapt_safetensors"]


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own."""
    return without_redundant(tensors, config, embedding="model.embed_tokens.weight")


def adapt_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own, and stores q and k for a rotation of neighbours instead of halves."""
    num_heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    return renamed_from_gguf(tensors, {kind: _in_halves(number) for kind, number in num_heads.items()})


def _in_halves(num_heads: int) -> Callable[[LazyTensor], LazyTensor]:
    def change(tensor: LazyTensor) -> LazyTensor:
        head_dim = tensor.shape[0] // num_heads
        return tensor.then(halves(head_dim), num_rows=head_dim)

    return change
