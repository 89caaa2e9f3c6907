"""A model's files as its plugin reads them: config, headers of the weights, defaults of requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipezoo.files.checkpoint import Checkpoint
from pipezoo.files.hub import ModelSource
from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config_entries import entries_of_model
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.errors import (
    CheckpointMismatchError,
    CorruptCheckpointError,
    InvalidSettingError,
    PipezooError,
    UnsupportedCheckpointError,
    UnsupportedModelError,
    shown,
)
from pipezoo_core.file_names import GENERATION_CONFIG
from pipezoo_core.json_file import read_json_object
from pipezoo_core.local_file import readable
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.weights import HEAD, GGUFFile, Weights, find_safetensors, open_safetensors, with_quantized

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["ModelFiles", "read_files"]

_MAX_SHOWN = 500


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What is found of a model, all but the numbers of its weights.

    Attributes:
        source: where it is.
        gguf: the opened file, or None for a folder.
        huggingface_config: what the model is.
        weight_paths: the weight files, all parts of a model that is split.
        weights: their tensors, headers read.
        generation_config: the folder's generation_config.json; nothing where there is none.
        sampling_params: settings of requests that bring none: ours, and over them those of the generation_config.json.
    """

    source: ModelSource
    gguf: GGUFFile | None
    huggingface_config: PretrainedConfig
    weight_paths: tuple[Path, ...]
    weights: Weights
    generation_config: dict[str, Any]
    sampling_params: SamplingParams


def read_files(checkpoint: Checkpoint, architecture: SupportedArchitecture) -> ModelFiles:
    """Reads a model's config, the headers of its weights, and its defaults. Reads no weights.

    Raises:
        UnsupportedModelError: the plugin cannot express this config.
        CheckpointError: the files are damaged, missing, unsafe, of a kind that the plugin does not read, or do not
            fit each other.
    """
    raw_config, paths, weights = _open_weights(checkpoint, architecture)
    huggingface_config = _huggingface_config(architecture, raw_config, weights)
    generation_config = _generation_config(checkpoint)
    return ModelFiles(
        source=checkpoint.source,
        gguf=checkpoint.gguf,
        huggingface_config=huggingface_config,
        weight_paths=paths,
        weights=weights,
        generation_config=generation_config,
        sampling_params=_sampling_params(checkpoint, generation_config),
    )


def _open_weights(
    checkpoint: Checkpoint, architecture: SupportedArchitecture
) -> tuple[dict[str, Any], tuple[Path, ...], Weights]:
    """Returns the config as in a config.json, the weight files, and their tensors."""
    path, readable = checkpoint.source.path, sorted(architecture.weight_adapters)
    if checkpoint.gguf is not None:
        if architecture.config_from_gguf is None:
            raise UnsupportedCheckpointError(f"{architecture.name} does not read GGUF", found=path, allowed=readable)
        return architecture.config_from_gguf(checkpoint.gguf), checkpoint.gguf.paths, checkpoint.gguf.weights
    paths = find_safetensors(path)
    return dict(checkpoint.config), paths, with_quantized(open_safetensors(paths), checkpoint.config)


def _huggingface_config(
    architecture: SupportedArchitecture, raw_config: dict[str, Any], weights: Weights
) -> PretrainedConfig:
    """Returns the plugin's config object, which knows nothing of code that the config names.

    Its head is tied only where the weights have none of other numbers than the embedding's.

    A config of a larger model than the weights is refused before anything is built.
    """
    _check_num_layers(raw_config, weights)
    try:
        config = architecture.huggingface_config(entries_of_model(raw_config))
        if issubclass(architecture.pipeline_model, DecoderPipelineModel):
            architecture.pipeline_model.config_class.from_huggingface(config).check_against(weights)
    except PipezooError:
        raise
    except Exception as error:  # a plugin's config class may fail in any way over values that it does not expect
        raise UnsupportedModelError(
            f"the config is not one of {architecture.name}",
            found=f"{type(error).__name__}: {error}"[:_MAX_SHOWN],
            cure="Check the model's config.json.",
        ) from error
    if getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = HEAD not in weights.adapted(architecture.weight_adapters[weights.format], config)
    return config


def _check_num_layers(raw_config: Mapping[str, Any], weights: Weights) -> None:
    """Checks that there can be as many layers, of which config classes make lists, as the config says."""
    for entries in (raw_config, raw_config.get("text_config")):
        number = entries.get("num_hidden_layers") if isinstance(entries, Mapping) else None
        if isinstance(number, int) and number > len(weights):
            raise CheckpointMismatchError(missing=[f"most of {shown(number)} layers, with {len(weights)} tensors"])


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.source.path / GENERATION_CONFIG
    with readable(path):
        return read_json_object(path) if checkpoint.gguf is None and path.is_file() else {}


def _sampling_params(checkpoint: Checkpoint, generation_config: dict[str, Any]) -> SamplingParams:
    try:
        return SamplingParams.from_generation_config(generation_config)
    except InvalidSettingError as error:  # which would read as if the caller had set it
        raise CorruptCheckpointError(
            f"{checkpoint.source.path / GENERATION_CONFIG}: {error.what}",
            found=error.found,
            allowed=error.allowed,
            cure="Correct the value in the file, or take it out.",
        ) from error
