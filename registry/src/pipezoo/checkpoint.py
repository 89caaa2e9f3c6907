"""A model's files: their small parts, read, and how the rest of them is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError

from pipezoo.hub import ModelSource, is_gguf, read_config
from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.errors import (
    CorruptCheckpointError,
    InvalidSettingError,
    UnsupportedCheckpointError,
    UnsupportedModelError,
)
from pipezoo_core.json_file import read_json_object
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.weights import GGUFFile, Weights, find_safetensors, open_gguf, open_safetensors

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    "Checkpoint",
    "generation_config",
    "open_checkpoint",
    "open_weights",
    "read_huggingface_config",
    "sampling_defaults",
]

# What a plugin's config class may raise over values of other types, sizes or depths than it expects.
_MALFORMED = (
    ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError, StrictDataclassError
)  # fmt: skip


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
    try:
        return Checkpoint(source, {"model_type": file.metadata["general.architecture"]}, file)
    except KeyError as error:
        raise CorruptCheckpointError(f"{source.path} lacks {error}", cure="Convert the model again.") from error


def open_weights(
    checkpoint: Checkpoint, architecture: SupportedArchitecture
) -> tuple[dict[str, Any], tuple[Path, ...], Weights]:
    """Returns the config as in a config.json, the weight files, and their tensors, headers read.

    Raises:
        CheckpointError: the files are damaged, missing, unsafe, or of a kind that the plugin does not read.
    """
    path, readable = checkpoint.source.path, sorted(architecture.weight_adapters)
    if checkpoint.gguf is not None:
        if architecture.config_from_gguf is None:
            raise UnsupportedCheckpointError(f"{architecture.name} does not read GGUF", found=path, allowed=readable)
        return architecture.config_from_gguf(checkpoint.gguf), (path,), checkpoint.gguf.weights
    if checkpoint.config.get("quantization_config"):
        raise UnsupportedCheckpointError(
            "the checkpoint is quantized in a way that is not read",
            found=checkpoint.config["quantization_config"],
            allowed="unquantized safetensors, or GGUF",
            cure="Take the unquantized checkpoint.",
        )
    paths = find_safetensors(path)
    return dict(checkpoint.config), paths, open_safetensors(paths)


def read_huggingface_config(architecture: SupportedArchitecture, raw_config: dict[str, Any]) -> PretrainedConfig:
    """Returns the plugin's config object, which knows nothing of code that the config names.

    Raises:
        UnsupportedModelError: the plugin cannot express this config.
    """
    known = {name: value for name, value in raw_config.items() if not name.startswith("_") and name != "auto_map"}
    try:
        return architecture.huggingface_config(known)
    except _MALFORMED as error:
        raise UnsupportedModelError(
            f"the config is not one of {architecture.name}", found=error, cure="Check the model's config.json."
        ) from error


def generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the folder's generation_config.json; nothing where there is none.

    Raises:
        CorruptCheckpointError: it is no JSON object, or larger than any config.
    """
    path = _generation_config_path(checkpoint)
    return read_json_object(path) if checkpoint.gguf is None and path.is_file() else {}


def sampling_defaults(checkpoint: Checkpoint) -> SamplingParams:
    """Returns the settings of requests that bring none: ours, and over them those of the generation_config.json.

    Raises:
        CorruptCheckpointError: the file is damaged, or a value in it is out of range.
    """
    try:
        return SamplingParams.from_generation_config(generation_config(checkpoint))
    except InvalidSettingError as error:  # which would read as if the caller had set it
        raise CorruptCheckpointError(
            f"{_generation_config_path(checkpoint)}: {error.what}",
            found=error.found,
            allowed=error.allowed,
            cure="Correct the value in the file, or take it out.",
        ) from error


def _generation_config_path(checkpoint: Checkpoint) -> Path:
    return checkpoint.source.path / "generation_config.json"
