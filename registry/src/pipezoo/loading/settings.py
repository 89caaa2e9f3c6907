"""What a caller asks of a load, checked before anything is looked for. Knows no torch, no model and no file."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from pipezoo_core.config import KVCacheConfig, LoRAConfig, RunConfig, SupportedEncoding
from pipezoo_core.errors import InvalidSettingError, shown

__all__ = ["DEVICES", "LoadSettings"]

DEVICES = "auto, cpu, or a GPU that torch sees, such as cuda:0"
"""What a device can be called, for messages."""

_DEVICE = re.compile(r"auto|cpu|(?:cpu|cuda):[0-9]{1,3}")
_DTYPES = ("auto", *(encoding.value for encoding in SupportedEncoding))


def _as_device(value: object) -> str:
    name = str(value).strip()
    if not _DEVICE.fullmatch(name):
        raise InvalidSettingError("there is no such device", found=shown(value), allowed=DEVICES)
    return "cpu" if name.startswith("cpu") else name  # cpu:1 is no other one


def _as_devices(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value:
        raise InvalidSettingError(
            "setting 'devices' is not a list of devices",
            found=shown(value),
            cure="Give either `device` or `devices`, the latter as a list of names.",
        )
    return tuple(map(_as_device, value))


def _as_dtype(value: object) -> str:
    if str(value) not in _DTYPES:
        raise InvalidSettingError("setting 'dtype' is not valid", found=shown(value), allowed=", ".join(_DTYPES))
    return str(value)


class LoadSettings(RunConfig, KVCacheConfig, LoRAConfig):
    """Everything that a caller can say of a load, under the names of `registry.load`.

    Attributes:
        revision: a branch, tag or commit of a Hub repository.
        plugin: the distribution to take where several serve the model.
        device: a device's name.
        devices: several in place of it, one replica's after the other's; all of one kind.
        dtype: the precision to run in, or `"auto"`.
    """

    revision: str | None = None
    plugin: str | None = None
    device: Annotated[str, BeforeValidator(_as_device)] = "auto"
    devices: Annotated[tuple[str, ...] | None, BeforeValidator(_as_devices)] = None
    dtype: Annotated[str, BeforeValidator(_as_dtype)] = "auto"

    def model_post_init(self, _context: Any, /) -> None:
        """Checks the devices against each other and the number of replicas.

        Raises:
            InvalidSettingError: there are both `device` and `devices`, or names that cannot go together, or as many as
                the replicas cannot have.
        """
        names = self.device_names
        if self.devices and self.device != "auto":
            raise InvalidSettingError(
                "the devices cannot be told from `device` and `devices`",
                found=f"device={self.device!r}, devices={list(self.devices)}",
                cure="Give either `device` or `devices`, the latter as a list of names.",
            )
        if len(names) > 1 and "auto" in names:
            raise InvalidSettingError(
                "`auto` cannot be one of several devices", found=names, allowed="names like cuda:0"
            )
        if len({name.partition(":")[0] for name in names}) > 1:
            raise InvalidSettingError(
                "the devices of a model are of different kinds", found=names, allowed="all of one"
            )
        if len(names) > 1 and len(names) % self.data_parallel_degree:
            raise InvalidSettingError(
                "the devices cannot be divided among the replicas",
                found=f"{self.data_parallel_degree} replicas on {len(names)} devices",
                allowed="a single device, or as many for each replica",
            )

    @property
    def device_names(self) -> tuple[str, ...]:
        """The names of the devices, whichever setting gave them. Whether there are such is not checked."""
        return self.devices or (self.device,)

    @property
    def has_several_ranks(self) -> bool:
        """Whether several devices compute each replica."""
        return len(self.device_names) > self.data_parallel_degree

    def of_replica(self, replica: int) -> LoadSettings:
        """Returns the settings of one of several replicas, or of the only one, which each have devices of their own."""
        size = len(self.device_names) // self.data_parallel_degree
        return self.updated(
            devices=self.device_names[replica * size : (replica + 1) * size], device="auto", data_parallel_degree=1
        )

    @property
    def kv_cache(self) -> KVCacheConfig:
        """The settings of the KV cache."""
        return KVCacheConfig(**self.given(KVCacheConfig))

    @property
    def lora(self) -> LoRAConfig | None:
        """The settings of adapters, where there is any."""
        given = {name: value for name, value in self.given(LoRAConfig).items() if value is not None}
        return LoRAConfig(**given) if given else None
