"""From the names in a checkpoint to those of `QwenForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, renamed_from_gguf, with_experts_divided, without_redundant

__all__ = ["adapt_gguf", "adapt_safetensors", "as_row"]


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own."""
    return without_redundant(with_experts_divided(tensors), config)


def adapt_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own; q and k are stored for a rotation of halves, as they are here."""
    del config
    return with_experts_divided(renamed_from_gguf(tensors, {"ffn_gate_inp_shexp": as_row}))


def as_row(vector: LazyTensor) -> LazyTensor:
    """The gate of the shared expert is a vector [H] in a file, and a layer's only row here."""
    return LazyTensor((1, *vector.shape[-1:]), vector.dtype, lambda rows: vector.load().view(1, -1)[rows])
