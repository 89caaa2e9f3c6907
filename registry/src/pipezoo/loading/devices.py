"""Which devices a model runs on: looked for, and divided among its replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from pipezoo.loading.settings import DEVICES
from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import PipelineConfig
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.distributed import launched_rank
from pipezoo_core.errors import InvalidSettingError

__all__ = ["check_device", "check_parallel", "of_each_replica", "place_model"]

T = TypeVar("T")


def place_model(names: Sequence[str], num_replicas: int) -> tuple[torch.device, ...]:
    """Returns the devices of these names; of a single one, as many as there are replicas.

    Of a model whose processes a launcher has started, only this process's own is looked at: what others see may be
    another host's, or under the same name another GPU.

    Raises:
        InvalidSettingError: there is no such device here, or one GPU is to be two, or there are fewer than replicas.
    """
    if len(names) == 1:
        return _replica_devices(check_device(names[0]), num_replicas)
    rank = launched_rank() if num_replicas == 1 else None
    if rank is not None:
        check_device(names[rank % len(names)])  # where there are not as many processes as names, joining them says so
        return tuple(map(torch.device, names))
    devices = tuple(map(check_device, names))
    has_parts, is_twice = len(names) > num_replicas, len({device.index or 0 for device in devices}) < len(devices)
    if has_parts and devices[0].type == "cuda" and is_twice:
        raise InvalidSettingError(
            "a GPU cannot compute two parts of a model", found=names, cure="Name each GPU once, or load it on one."
        )
    return devices


def of_each_replica(devices: Sequence[T], num_replicas: int) -> list[Sequence[T]]:
    """Returns the devices of each replica: the first ones are the first's."""
    size = len(devices) // num_replicas
    return [devices[start : start + size] for start in range(0, len(devices), size)]


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
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"devices of type {device.type} are not supported")
    except RuntimeError as error:
        raise InvalidSettingError("there is no such device", found=f"{name} ({error})", allowed=DEVICES) from error
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


def check_parallel(config: PipelineConfig, architecture: SupportedArchitecture) -> None:
    """Checks whether several devices can do together what was asked for.

    Raises:
        InvalidSettingError: they cannot.
    """
    if config.tensor_parallel_degree == 1:
        return
    if not issubclass(architecture.pipeline_model, DecoderPipelineModel):
        raise InvalidSettingError(
            f"{architecture.name} runs on a single device only",
            found=f"{config.tensor_parallel_degree} devices",
            cure="Load it on one device.",
        )
