"""Entries of a checkpoint's configs: which say something of its model, and which values are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BeforeValidator

__all__ = ["NUMBER", "entries_of_model"]


def _number(value: object) -> object:
    if isinstance(value, bool | str):
        raise ValueError("a number is wanted")
    return value


NUMBER = BeforeValidator(_number)
"""Of fields that are numbers: neither `true` nor a text stands for one."""

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
