"""The tensors of the text part of a model that also sees, under the names that a model of text alone gives them."""

from __future__ import annotations

from collections.abc import Mapping

from pipezoo_core.weights.base import LazyTensor

__all__ = ["of_text_part"]

_TEXT = (  # where checkpoints have the text part: those that transformers 5 writes, and older ones
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
_VISION = (
    "vision_tower.", "multi_modal_projector.",
    "model.vision_tower.", "model.multi_modal_projector.", "model.visual.",
)  # fmt: skip


def of_text_part(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Returns a checkpoint's tensors without those that make tokens of images. Other names stay as they are."""
    return {_name(name): tensor for name, tensor in tensors.items() if not name.startswith(_VISION)}


def _name(name: str) -> str:
    for prefix, ours in _TEXT:
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return name
