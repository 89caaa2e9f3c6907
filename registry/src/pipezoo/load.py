"""From a model's files and the plugin chosen for them to a running pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError

from pipezoo.hub import ModelSource, read_config
from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import KVCacheConfig, LoRAConfig, PipelineConfig, ReturnLogits
from pipezoo_core.context import TextContext
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.distributed import TensorParallelGroup, ranks_here
from pipezoo_core.errors import (
    CorruptCheckpointError,
    InvalidSettingError,
    UnsupportedCheckpointError,
    UnsupportedModelError,
)
from pipezoo_core.interfaces import PipelineModel
from pipezoo_core.memory import MemoryPlan, plan_memory, release_freed_memory
from pipezoo_core.pipeline import TextGenerationPipeline
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.session import InferenceSession
from pipezoo_core.tokenizer import TextTokenizer, eos_token_ids, load_tokenizer, tokenizer_from_gguf
from pipezoo_core.weights import GGUFFile, Weights, find_safetensors, open_gguf, open_safetensors, resolve_encoding

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    "Checkpoint",
    "LoadPlan",
    "build_pipeline",
    "check_device",
    "device_names",
    "open_checkpoint",
    "open_model",
    "plan_load",
]

_KV_SETTINGS = {"page_size": "page_size", "kv_cache_memory": "memory", "enable_prefix_caching": "enable_prefix_caching"}
_LORA_SETTINGS = ("lora_paths", "max_lora_rank", "max_num_loras")
_SETTINGS = (
    "attention", "data_parallel_degree", "enforce_eager", "linear", "max_batch_size", "max_batch_tokens", "max_length"
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
    if source.path.suffix != ".gguf":
        return Checkpoint(source, read_config(source.path), None)
    file = open_gguf(source.path)
    try:
        return Checkpoint(source, {"model_type": file.metadata["general.architecture"]}, file)
    except KeyError as error:
        raise CorruptCheckpointError(f"{source.path} lacks {error}", cure="Convert the model again.") from error


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Everything that is decided before the weights are read.

    Attributes:
        architecture: what the plugin says of itself.
        huggingface_config: what the model is.
        pipeline_config: how it runs, complete.
        memory: what the memory is used for.
        sampling_params: the defaults of its requests.
        devices: where each replica runs.
        weights: the checkpoint, headers read.
        checkpoint: its files.
    """

    architecture: SupportedArchitecture
    huggingface_config: PretrainedConfig
    pipeline_config: PipelineConfig
    memory: MemoryPlan
    sampling_params: SamplingParams
    devices: tuple[torch.device, ...]
    weights: Weights
    checkpoint: Checkpoint


def plan_load(
    checkpoint: Checkpoint,
    architecture: SupportedArchitecture,
    *,
    devices: Sequence[str],
    dtype: str,
    settings: dict[str, Any],
    decided: tuple[PipelineConfig, MemoryPlan] | None = None,
) -> LoadPlan:
    """Checks settings and files against each other and plans the memory. Reads headers, no weights.

    Args:
        checkpoint: the model's files.
        architecture: what the plugin says of itself.
        devices: where it runs.
        dtype: the precision to run in, or `"auto"`.
        settings: of the pipeline.
        decided: what rank 0 has decided, for the other ranks of several.

    Raises:
        InvalidSettingError: a setting is unknown or out of range, or there is no such device.
        UnsupportedModelError: the plugin cannot express this config.
        CheckpointError: the files are damaged, missing, unsafe, or of an unsupported kind.
        InsufficientMemoryError: the model does not fit.
    """
    pipeline_settings = _pipeline_settings(settings)
    raw_config, paths, weights = _open_weights(checkpoint, architecture)
    huggingface_config = _huggingface_config(architecture, raw_config)
    if decided is None:
        num_replicas = PipelineConfig(model_path=checkpoint.source.name, **pipeline_settings).data_parallel_degree
        torch_devices = _devices(devices, num_replicas)
        requested = PipelineConfig(
            model_path=checkpoint.source.name,
            weight_paths=paths,
            huggingface_config=huggingface_config,
            device=str(torch_devices[0]),
            encoding=resolve_encoding(dtype, weights, torch_devices[0], architecture.supported_encodings),
            tensor_parallel_degree=len(torch_devices) // num_replicas,
            **pipeline_settings,
        )
        _check_parallel(requested, architecture, len(torch_devices))
        near = torch_devices[: ranks_here(len(torch_devices))]
        if requested.tensor_parallel_degree > 1:
            near = tuple(device for device in near if device == near[0])  # another GPU is as large, and not ours to use
        pipeline_config, memory = plan_memory(architecture.pipeline_model, requested, huggingface_config, near)
    else:
        torch_devices = tuple(map(torch.device, devices))
        pipeline_config, memory = decided
        pipeline_config = pipeline_config.updated(weight_paths=paths, huggingface_config=huggingface_config)
    return LoadPlan(
        architecture=architecture,
        huggingface_config=huggingface_config,
        pipeline_config=pipeline_config,
        memory=memory,
        sampling_params=SamplingParams.from_generation_config(_generation_config(checkpoint)),
        devices=torch_devices,
        weights=weights,
        checkpoint=checkpoint,
    )


def build_pipeline(plan: LoadPlan, group: TensorParallelGroup | None = None) -> TextGenerationPipeline:
    """Loads the tokenizer and, for each replica, the weights, and allocates its KV cache.

    Args:
        plan: of `plan_load`.
        group: the ranks that compute the model together, of which this is rank 0; None where this process is alone.
    """
    tokenizer = _tokenizer(plan)
    places = [plan.devices] if group else [[device] for device in plan.devices]
    models = [open_model(plan, devices, group) for devices in places]
    return TextGenerationPipeline(plan.pipeline_config, models, tokenizer, plan.memory)


def open_model(
    plan: LoadPlan, devices: Sequence[torch.device], group: TensorParallelGroup | None = None
) -> PipelineModel[TextContext]:
    """Loads the weights of one replica, or one rank's part of them, and allocates its KV cache."""
    session = InferenceSession(devices, group)
    model = plan.architecture.pipeline_model(
        pipeline_config=plan.pipeline_config,
        session=session,
        huggingface_config=plan.huggingface_config,
        encoding=plan.pipeline_config.encoding,
        devices=session.devices,
        kv_cache_config=plan.pipeline_config.kv_cache,
        weights=plan.weights,
        adapter=plan.architecture.weight_adapters[plan.weights.format],
        return_logits=ReturnLogits.VARIABLE,
    )
    release_freed_memory()
    return model


def device_names(device: str, devices: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the devices that `registry.load` was given in one way or the other.

    Raises:
        InvalidSettingError: it was given both, or none.
    """
    if devices is None:
        return (device,)
    if device != "auto" or isinstance(devices, str) or not devices:
        raise InvalidSettingError(
            "the devices are not clear",
            found=f"device={device!r}, devices={devices!r}",
            allowed="one of them, and devices a list of names",
        )
    if len({name.partition(":")[0] for name in devices}) > 1:
        raise InvalidSettingError("the devices of a model are of different kinds", found=devices, allowed="all of one")
    return tuple(devices)


def _devices(names: Sequence[str], num_replicas: int) -> tuple[torch.device, ...]:
    if len(names) == 1:
        return _replica_devices(check_device(names[0]), num_replicas)
    return tuple(map(torch.device, names))


def _check_parallel(config: PipelineConfig, architecture: SupportedArchitecture, num_devices: int) -> None:
    if config.data_parallel_degree > 1 and num_devices != config.data_parallel_degree:
        raise InvalidSettingError(
            "a replica cannot have several devices, or a part of one",
            found=f"{config.data_parallel_degree} replicas on {num_devices} devices",
            allowed="a single device, or as many as replicas",
        )
    if config.tensor_parallel_degree == 1:
        return
    if config.lora is not None:
        raise InvalidSettingError(
            "LoRA adapters are served on a single device only", cure="Load the model on one device, or without them."
        )
    if not issubclass(architecture.pipeline_model, DecoderPipelineModel):
        raise InvalidSettingError(
            f"{architecture.name} runs on a single device only",
            found=f"{config.tensor_parallel_degree} devices",
            cure="Load it on one device.",
        )


def _pipeline_settings(settings: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(settings.keys() - {*_SETTINGS, *_KV_SETTINGS, *_LORA_SETTINGS})
    if unknown:
        raise InvalidSettingError(
            f"unknown setting {unknown[0]!r}",
            allowed=[*_SETTINGS, *_KV_SETTINGS, *_LORA_SETTINGS],
            cure="Check the spelling.",
        )
    of_cache = {_KV_SETTINGS[name]: value for name, value in settings.items() if name in _KV_SETTINGS}
    own = {name: value for name, value in settings.items() if name in _SETTINGS}
    of_lora = {name: value for name, value in settings.items() if name in _LORA_SETTINGS}
    return {**own, "kv_cache": KVCacheConfig(**of_cache), "lora": LoRAConfig(**of_lora) if of_lora else None}


def check_device(name: str) -> torch.device:
    """Returns the device of this name.

    Raises:
        InvalidSettingError: there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise RuntimeError(f"torch sees {torch.cuda.device_count()} GPUs")
        if device.type != "cuda":  # it would take some of a GPU's memory, which may be another process's to use
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidSettingError(
            "there is no such device", found=name, allowed="auto, cpu, or a GPU that torch sees, such as cuda:0"
        ) from error
    return device


def _replica_devices(device: torch.device, degree: int) -> tuple[torch.device, ...]:
    """Gives each replica a GPU of its own, from this one on; on a CPU they share it."""
    if device.type == "cpu" or degree == 1:
        return (device,) * degree
    first = device.index or 0
    if first + degree > torch.cuda.device_count():
        raise InvalidSettingError(
            "there are fewer GPUs than replicas",
            found=f"{torch.cuda.device_count() - first} from {device} on",
            cure=f"Set data_parallel_degree to at most that, instead of {degree}.",
        )
    return tuple(torch.device(device.type, index) for index in range(first, first + degree))


def _open_weights(
    checkpoint: Checkpoint, architecture: SupportedArchitecture
) -> tuple[dict[str, Any], tuple[Path, ...], Weights]:
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


def _huggingface_config(architecture: SupportedArchitecture, raw_config: dict[str, Any]) -> PretrainedConfig:
    known = {name: value for name, value in raw_config.items() if not name.startswith("_") and name != "auto_map"}
    try:
        return architecture.huggingface_config(known)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        raise UnsupportedModelError(
            f"the config is not one of {architecture.name}", found=error, cure="Check the model's config.json."
        ) from error


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.source.path / "generation_config.json"
    if checkpoint.gguf is not None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CorruptCheckpointError(f"{path} is not JSON", cure="Download the file again.") from error
    return found if isinstance(found, dict) else {}


def _tokenizer(plan: LoadPlan) -> TextTokenizer:
    checkpoint = plan.checkpoint
    if checkpoint.gguf is not None:
        delegate = tokenizer_from_gguf(checkpoint.gguf.metadata)
    else:
        delegate = load_tokenizer(checkpoint.source.path, plan.architecture.tokenizer)
    assert plan.pipeline_config.max_length is not None
    return TextTokenizer(
        delegate,
        max_length=plan.pipeline_config.max_length,
        sampling_params=plan.sampling_params,
        eos_token_ids=eos_token_ids(delegate, plan.huggingface_config, _generation_config(checkpoint)),
    )
