"""A model's files before a plugin is chosen: what the choice needs is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipezoo.files.hub import ModelSource, read_config
from pipezoo_core.file_names import is_gguf
from pipezoo_core.weights import GGUFFile, model_type_of, open_gguf

__all__ = ["Checkpoint", "open_checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files, their small parts read.

    Attributes:
        source: where they are.
        config: the parsed config.json; for a GGUF file only the model type.
        gguf: the opened file, or None for a folder.
    """

    source: ModelSource
    config: Mapping[str, Any]
    gguf: GGUFFile | None


def open_checkpoint(source: ModelSource) -> Checkpoint:
    """Reads what is needed to choose a plugin.

    Raises:
        CheckpointError: the GGUF file or config.json cannot be read.
    """
    if not is_gguf(source.path):
        return Checkpoint(source, read_config(source.path), None)
    file = open_gguf(source.path)
    return Checkpoint(source, {"model_type": model_type_of(file)}, file)
