"""Why a config.json is refused, found out before anything else of the model is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipezoo_core.config_entries import entries_of_model
from pipezoo_core.errors import PipezooError
from pipezoo_transformers.config import TransformersConfig, read_huggingface_config

__all__ = ["why_not"]

_MAX_SHOWN = 500


def why_not(raw: Mapping[str, Any]) -> str | None:
    """Returns the reason to refuse a model, or None.

    Args:
        raw: the parsed config.json.
    """
    try:
        TransformersConfig.from_huggingface(read_huggingface_config(entries_of_model(raw)))
    except PipezooError as error:
        return str(error)
    except Exception as error:  # transformers' classes may fail in any way over values that they do not expect
        return f"transformers cannot make a model of its config.json: {type(error).__name__}: {error}"[:_MAX_SHOWN]
    return None
