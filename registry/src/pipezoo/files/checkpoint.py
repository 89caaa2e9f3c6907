"""A model's files: their small parts, read, and how the rest of them is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipezoo.files.hub import ModelSource, read_config
from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.errors import (
    CorruptCheckpointError,
    InvalidSettingError,
    PipezooError,
    UnsupportedCheckpointError,
    UnsupportedModelError,
)
from pipezoo_core.file_names import GENERATION_CONFIG, is_gguf
from pipezoo_core.json_file import read_json_object
from pipezoo_core.local_file import readable
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.weights import HEAD, GGUFFile, Weights, find_safetensors, open_gguf, open_safetensors

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

_MAX_SHOWN = 500

# Of classifiers, of how files were written, and of code. A config class would act on some of them.
_WITHOUT_EFFECT = (
    "auto_map", "dtype", "id2label", "label2id", "num_labels", "per_layer_config", "problem_type",
    "quantization_config", "torch_dtype",
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
    paths = find_safetensors(path)
    return dict(checkpoint.config), paths, open_safetensors(paths)


def read_huggingface_config(
    architecture: SupportedArchitecture, raw_config: dict[str, Any], weights: Weights
) -> PretrainedConfig:
    """Returns the plugin's config object, which knows nothing of code that the config names.

    Its head is tied only where the weights have none of other numbers than the embedding's.

    Raises:
        UnsupportedModelError: the plugin cannot express this config.
        CheckpointMismatchError: it is of a larger model than the weights; nothing was built then.
    """
    known = {name: value for name, value in raw_config.items() if not _is_without_effect(name)}
    try:
        config = architecture.huggingface_config(known)
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
        config.tie_word_embeddings = HEAD not in architecture.weight_adapters[weights.format](weights, config)
    return config


def _is_without_effect(name: str) -> bool:
    """Whether an entry says nothing of the model, or would take the place of a method of its config."""
    from transformers import PretrainedConfig

    return name.startswith("_") or name in _WITHOUT_EFFECT or callable(getattr(PretrainedConfig, name, None))


def generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the folder's generation_config.json; nothing where there is none.

    Raises:
        CorruptCheckpointError: it is no JSON object, or larger than any config.
    """
    path = _generation_config_path(checkpoint)
    with readable(path):
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
    return checkpoint.source.path / GENERATION_CONFIG
