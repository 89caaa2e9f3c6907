"""From the names in a checkpoint to those of `GemmaForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, without_redundant

__all__ = ["adapt_safetensors", "adapt_text_part"]

_TEXT = (  # where checkpoints have the text part: those that transformers 5 writes, and older ones
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
_VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own."""
    return without_redundant(tensors, config, embedding="model.embed_tokens.weight")


def adapt_text_part(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Of a Gemma 3 that also sees, leaves out what makes tokens of images."""
    named = {_text_name(name): tensor for name, tensor in tensors.items() if not name.startswith(_VISION)}
    return adapt_safetensors(named, config)


def _text_name(name: str) -> str:
    for prefix, ours in _TEXT:
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return name
