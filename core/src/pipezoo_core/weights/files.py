"""Opens a checkpoint's files, whatever their format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipezoo_core.file_names import is_gguf
from pipezoo_core.weights.base import Weights
from pipezoo_core.weights.gguf import open_gguf
from pipezoo_core.weights.safetensors import open_safetensors

__all__ = ["open_weights"]


def open_weights(paths: Sequence[Path]) -> Weights:
    """Opens one GGUF file, or the safetensors files of one checkpoint. Reads headers only.

    Raises:
        CorruptCheckpointError: a file is truncated or damaged.
        UnsupportedCheckpointError: a file holds what cannot be read.
    """
    if is_gguf(paths[0]):
        return open_gguf(paths[0]).weights
    return open_safetensors(paths)
