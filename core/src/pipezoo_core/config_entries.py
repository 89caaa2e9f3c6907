"""Which entries of a config.json say something of its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["entries_of_model"]

# Of classifiers, of how files were written, and of code. A config class would act on some of them.
_WITHOUT_EFFECT = (
    "auto_map", "dtype", "id2label", "label2id", "num_labels", "per_layer_config", "problem_type",
    "quantization_config", "torch_dtype",
)  # fmt: skip


def entries_of_model(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries that a config class may see: none that says nothing of the model, or would be a method."""
    from transformers import PretrainedConfig

    return {
        name: value
        for name, value in raw.items()
        if not (name.startswith("_") or name in _WITHOUT_EFFECT or callable(getattr(PretrainedConfig, name, None)))
    }
