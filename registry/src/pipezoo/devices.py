"""Which devices a model runs on: named, checked, and divided among its replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import PipelineConfig
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.distributed import launched_rank
from pipezoo_core.errors import InvalidSettingError, shown

__all__ = ["check_device", "check_parallel", "device_names", "of_each_replica", "place_model"]

T = TypeVar("T")

_ALLOWED = "auto, cpu, or a GPU that torch sees, such as cuda:0"


def device_names(
    device: str | torch.device, devices: Sequence[str | torch.device] | None, num_replicas: int
) -> tuple[str, ...]:
    """Returns the names that `registry.load` was given in one way or the other. Whether there are such is not checked.

    Raises:
        InvalidSettingError: it was given both, or none, or names that are none, or a number of them that the replicas
            cannot have.
    """
    if devices is None:
        return (_name(device),)
    if device != "auto" or not isinstance(devices, list | tuple) or not devices:
        raise InvalidSettingError(
            "the devices cannot be told from `device` and `devices`",
            found=f"device={shown(device)}, devices={shown(devices)}",
            cure="Give either `device` or `devices`, the latter as a list of names.",
        )
    names = tuple(map(_name, devices))
    if len(names) > 1 and len({name.partition(":")[0] for name in names}) > 1:
        raise InvalidSettingError("the devices of a model are of different kinds", found=names, allowed="all of one")
    if len(names) > 1 and "auto" in names:
        raise InvalidSettingError("`auto` cannot be one of several devices", found=names, allowed="names like cuda:0")
    if len(names) > 1 and len(names) % num_replicas:
        raise InvalidSettingError(
            "the devices cannot be divided among the replicas",
            found=f"{num_replicas} replicas on {len(names)} devices",
            allowed="a single device, or as many for each replica",
        )
    return names


def _name(device: object) -> str:
    if not isinstance(device, str | torch.device):
        raise InvalidSettingError("there is no such device", found=shown(device), allowed=_ALLOWED)
    name = str(device).strip()
    try:
        is_cpu = name != "auto" and torch.device(name).type == "cpu"
    except RuntimeError as error:
        raise InvalidSettingError("there is no such device", found=shown(device), allowed=_ALLOWED) from error
    return "cpu" if is_cpu else name  # cpu:1 is no other one


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
        raise InvalidSettingError("there is no such device", found=f"{name} ({error})", allowed=_ALLOWED) from error
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
