"""What is decided of a load before any weight is read: precision, devices, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pipezoo.files.checkpoint import Checkpoint, open_weights, read_huggingface_config, sampling_defaults
from pipezoo.loading.devices import check_parallel, place_model
from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import KVCacheConfig, LoRAConfig, PipelineConfig
from pipezoo_core.distributed import ranks_here
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.memory import MemoryPlan, plan_memory
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.weights import Weights, resolve_encoding

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["LoadPlan", "asked_config", "follow_plan", "plan_load"]

_KV_SETTINGS = {"page_size": "page_size", "kv_cache_memory": "memory", "enable_prefix_caching": "enable_prefix_caching"}
_LORA_SETTINGS = ("lora_paths", "max_lora_rank", "max_num_loras")
_SETTINGS = (
    "attention", "data_parallel_degree", "enforce_eager", "linear", "max_batch_size", "max_batch_tokens", "max_length",
    "rank_timeout",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Everything that is decided before the weights are read.

    Attributes:
        architecture: what the plugin says of itself.
        huggingface_config: what the model is.
        pipeline_config: how it runs, complete.
        memory: what the memory is used for.
        sampling_params: the defaults of its requests.
        devices: where it runs, one replica's devices after the other's.
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


def asked_config(settings: dict[str, Any]) -> PipelineConfig:
    """Returns what settings of `registry.load` ask for. Each is checked by itself, and no model is known yet.

    Raises:
        InvalidSettingError: a setting is unknown or out of range.
    """
    return PipelineConfig(model_path="", **_pipeline_settings(settings))


def plan_load(
    checkpoint: Checkpoint,
    architecture: SupportedArchitecture,
    *,
    devices: Sequence[str],
    dtype: str,
    settings: dict[str, Any],
) -> LoadPlan:
    """Checks settings and files against each other and plans the memory. Reads headers, no weights.

    Args:
        checkpoint: the model's files.
        architecture: what the plugin says of itself.
        devices: where it runs.
        dtype: the precision to run in, or `"auto"`.
        settings: of the pipeline.

    Raises:
        InvalidSettingError: a setting is unknown or out of range, or there is no such device.
        UnsupportedModelError: the plugin cannot express this config.
        CheckpointError: the files are damaged, missing, unsafe, or of an unsupported kind.
        InsufficientMemoryError: the model does not fit.
    """
    pipeline_settings = _pipeline_settings(settings)
    raw_config, paths, weights = open_weights(checkpoint, architecture)
    huggingface_config = read_huggingface_config(architecture, raw_config, weights)
    asked = PipelineConfig(
        model_path=checkpoint.source.name,
        weight_paths=paths,
        huggingface_config=huggingface_config,
        **pipeline_settings,
    )
    torch_devices = place_model(devices, asked.data_parallel_degree)
    by_kernels = asked.linear in ("auto", "native") and asked.attention in ("auto", "native") and not asked.lora
    requested = asked.updated(
        device=str(torch_devices[0]),
        encoding=resolve_encoding(
            dtype, weights, torch_devices[0], architecture.supported_encodings, by_kernels=by_kernels
        ),
        tensor_parallel_degree=len(torch_devices) // asked.data_parallel_degree,
    )
    check_parallel(requested, architecture)
    near = torch_devices
    if requested.tensor_parallel_degree > 1:  # the ranks of a host share its memory; other GPUs are not ours to use
        on_cpu = near[0].type == "cpu"
        near = near[: ranks_here(len(near))] if on_cpu else near[:: requested.tensor_parallel_degree]
    pipeline_config, memory = plan_memory(architecture.pipeline_model, requested, huggingface_config, near)
    return LoadPlan(
        architecture=architecture,
        huggingface_config=huggingface_config,
        pipeline_config=pipeline_config,
        memory=memory,
        sampling_params=sampling_defaults(checkpoint),
        devices=torch_devices,
        weights=weights,
        checkpoint=checkpoint,
    )


def follow_plan(
    checkpoint: Checkpoint,
    architecture: SupportedArchitecture,
    *,
    devices: Sequence[str],
    pipeline_config: PipelineConfig,
    memory: MemoryPlan,
) -> LoadPlan:
    """Plans, on another rank than rank 0, what that has decided. Reads headers, no weights.

    Args:
        checkpoint: the model's files here.
        architecture: what the plugin says of itself.
        devices: where it runs.
        pipeline_config: of rank 0's plan. What it says of files and of the model is read here.
        memory: of rank 0's plan.

    Raises:
        UnsupportedModelError, CheckpointError: as `plan_load`.
    """
    raw_config, paths, weights = open_weights(checkpoint, architecture)
    huggingface_config = read_huggingface_config(architecture, raw_config, weights)
    return LoadPlan(
        architecture=architecture,
        huggingface_config=huggingface_config,
        pipeline_config=pipeline_config.updated(weight_paths=paths, huggingface_config=huggingface_config),
        memory=memory,
        sampling_params=sampling_defaults(checkpoint),
        devices=tuple(map(torch.device, devices)),
        weights=weights,
        checkpoint=checkpoint,
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
