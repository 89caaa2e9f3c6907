"""What is decided of a load before any weight is read: precision, devices, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipezoo.discovery.resolution import Resolution
from pipezoo.files.model_files import ModelFiles, read_files
from pipezoo.loading.devices import check_parallel, place_model
from pipezoo.loading.find import FoundModel
from pipezoo.loading.settings import LoadSettings
from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import KVCacheConfig, LinearName, LoRAConfig, PipelineConfig, RunConfig, SupportedEncoding
from pipezoo_core.distributed import ranks_here
from pipezoo_core.memory import MemoryPlan, plan_memory
from pipezoo_core.weights import resolve_encoding

__all__ = ["LoadPlan", "follow_plan", "plan_load"]


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Everything that is decided before the weights are read.

    Attributes:
        settings: what was asked for, and what was decided where nothing was. Other ranks follow them.
        resolution: the plugin that serves it.
        files: what was found.
        devices: where it runs, one replica's devices after the other's.
        pipeline_config: how it runs, complete.
        memory: what the memory is used for.
    """

    settings: LoadSettings
    resolution: Resolution
    files: ModelFiles
    devices: tuple[torch.device, ...]
    pipeline_config: PipelineConfig
    memory: MemoryPlan

    @property
    def architecture(self) -> SupportedArchitecture:
        """What the plugin runs the model with."""
        return self.resolution.architecture


def plan_load(found: FoundModel, settings: LoadSettings) -> LoadPlan:
    """Checks settings and files against each other and plans the memory. Reads headers, no weights.

    Raises:
        InvalidSettingError: the model cannot do what is asked for, or there is no such device.
        UnsupportedModelError: the plugin cannot express this config.
        CheckpointError: the files are damaged, missing, unsafe, or of an unsupported kind.
        InsufficientMemoryError: the model does not fit.
    """
    architecture = found.resolution.architecture
    files = read_files(found.checkpoint, architecture)
    devices = place_model(settings.device_names, settings.data_parallel_degree)
    asked = _pipeline_config(found.resolution, files, settings, devices)
    encoding = resolve_encoding(
        settings.dtype,
        files.weights,
        devices[0],
        architecture.supported_encodings,
        by_kernels=asked.allows_native_kernels,
        packs=asked.linear in (LinearName.auto, LinearName.native),
    )
    requested = _in_encoding(asked, encoding, files, architecture)
    check_parallel(requested, architecture)
    config, memory = plan_memory(
        architecture.pipeline_model,
        requested,
        files.huggingface_config,
        _near(devices, requested.tensor_parallel_degree),
    )
    return LoadPlan(_decided(settings, config), found.resolution, files, devices, config, memory)


def follow_plan(found: FoundModel, settings: LoadSettings, memory: MemoryPlan) -> LoadPlan:
    """Plans, on another rank than rank 0, what that has decided. Reads headers, no weights.

    Args:
        found: the model, as this rank finds it.
        settings: of rank 0's plan.
        memory: of rank 0's plan.

    Raises:
        UnsupportedModelError, CheckpointError: as `plan_load`.
    """
    files = read_files(found.checkpoint, found.resolution.architecture)
    devices = tuple(map(torch.device, settings.device_names))
    asked, encoding = _pipeline_config(found.resolution, files, settings, devices), SupportedEncoding(settings.dtype)
    config = _in_encoding(asked, encoding, files, found.resolution.architecture)
    return LoadPlan(settings, found.resolution, files, devices, config, memory)


def _pipeline_config(
    resolution: Resolution, files: ModelFiles, settings: LoadSettings, devices: Sequence[torch.device]
) -> PipelineConfig:
    return PipelineConfig(
        model_path=files.source.name,
        plugin=f"{resolution.plugin.distribution} {resolution.plugin.version}",
        weight_paths=files.weight_paths,
        huggingface_config=files.huggingface_config,
        device=str(devices[0]),
        tensor_parallel_degree=len(devices) // settings.data_parallel_degree,
        kv_cache=settings.kv_cache,
        lora=settings.lora,
        **settings.given(RunConfig),
    )


def _in_encoding(
    config: PipelineConfig, encoding: SupportedEncoding, files: ModelFiles, architecture: SupportedArchitecture
) -> PipelineConfig:
    if encoding is not SupportedEncoding.packed:
        return config.updated(encoding=encoding)
    adapter = architecture.weight_adapters[files.weights.format]
    tensors = files.weights.adapted(adapter, files.huggingface_config)
    types = {name: tensor.stored.type for name, tensor in tensors.items() if tensor.stored is not None}
    return config.updated(encoding=encoding, stored_types=types)


def _decided(settings: LoadSettings, config: PipelineConfig) -> LoadSettings:
    lora = config.lora.given(LoRAConfig) if config.lora else {}
    decided = {**config.given(RunConfig), **config.kv_cache.given(KVCacheConfig), **lora}
    return settings.updated(dtype=config.encoding, **decided)


def _near(devices: Sequence[torch.device], num_ranks: int) -> Sequence[torch.device]:
    """Returns the devices whose memory is looked at: the ranks of a host share it, other ranks' GPUs are not ours."""
    if num_ranks == 1:
        return devices
    return devices[: ranks_here(len(devices))] if devices[0].type == "cpu" else devices[::num_ranks]
