"""Which devices a model runs on: named, checked, and divided among its replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import PipelineConfig
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.errors import InvalidSettingError

__all__ = ["check_device", "check_parallel", "device_names", "place_model", "replicas_in"]


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


def replicas_in(settings: dict[str, Any]) -> int:
    """Returns the `data_parallel_degree` among settings of `registry.load`.

    Raises:
        InvalidSettingError: it is not a number of replicas.
    """
    name = "data_parallel_degree"
    return PipelineConfig(model_path="", **{name: settings[name]} if name in settings else {}).data_parallel_degree


def place_model(names: Sequence[str], num_replicas: int) -> tuple[torch.device, ...]:
    """Returns the devices of these names; of a single one, as many as there are replicas.

    Raises:
        InvalidSettingError: there is no such device, or there are fewer GPUs than replicas.
    """
    if len(names) == 1:
        return _replica_devices(check_device(names[0]), num_replicas)
    return tuple(map(torch.device, names))


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


def check_parallel(config: PipelineConfig, architecture: SupportedArchitecture, num_devices: int) -> None:
    """Checks whether so many devices can do together what was asked for.

    Raises:
        InvalidSettingError: they cannot.
    """
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
