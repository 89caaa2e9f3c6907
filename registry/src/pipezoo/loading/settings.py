"""What a caller asks of a load, checked before anything is looked for. Knows no torch, no model and no file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from pipezoo_core.config import KVCacheConfig, LoRAConfig, RunConfig, SupportedEncoding
from pipezoo_core.errors import InvalidSettingError, shown
from pipezoo_core.sampling_params import SamplingParams

__all__ = ["DEVICES", "LoadSettings"]

DEVICES = "auto, cpu, or a GPU that torch sees, such as cuda:0"
"""What a device can be called, for messages."""

_DEVICE = re.compile(r"auto|cpu|(?:cpu|cuda):[0-9]{1,3}")
_MAX_DEVICES = 1024
_FIRST_GPU = ("cuda", "gpu")
_DTYPES = ("auto", *(encoding.value for encoding in SupportedEncoding))
_SHORT_DTYPES = {"bf16": "bfloat16", "float": "float32", "fp16": "float16", "fp32": "float32", "half": "float16"}

_ELSEWHERE = {
    "attn_implementation": "`attention`",
    "block_size": "`page_size`",
    "data_parallel_size": "`data_parallel_degree`",
    "device_memory_utilization": 'kv_cache_memory="8GiB" or the like; weights and steps take what they need',
    "device_map": 'device="cuda:0", or devices=["cuda:0", "cuda:1"]',
    "device_specs": 'devices=["cuda:0", "cuda:1"], a name for each',
    "draft_model": 'speculative="lookup"; there are no draft models',
    "enable_lora": "`max_num_loras`",
    "gpu_memory_utilization": 'kv_cache_memory="8GiB" or the like; weights and steps take what they need',
    "huggingface_model_revision": "`revision`",
    "kv_cache_memory_bytes": "`kv_cache_memory`",
    "kv_cache_page_size": "`page_size`",
    "load_in_4bit": 'dtype="int4"',
    "load_in_8bit": 'dtype="int8"',
    "lora_path": "`lora_paths`",
    "max_batch_input_tokens": "`max_batch_tokens`",
    "max_loras": "`max_num_loras`",
    "max_model_len": "`max_length`",
    "max_num_batched_tokens": "`max_batch_tokens`",
    "max_num_seqs": "`max_batch_size`",
    "max_seq_len": "`max_length`",
    "n_batch": "`max_batch_tokens`",
    "n_ctx": "`max_length`",
    "n_gpu_layers": 'device="cuda:0"',
    "quantization": 'dtype="int8" or dtype="int4"',
    "quantization_config": 'dtype="int8" or dtype="int4"',
    "quantization_encoding": 'dtype="int8" or dtype="int4"',
    "speculative_config": 'speculative="lookup"',
    "tensor_parallel_size": 'devices=["cuda:0", "cuda:1"], a name for each',
    "torch_dtype": "`dtype`",
    "trust_remote_code": "nothing in its place: code of a repository is never run, and a plugin serves what needs some",
}

_IN_REQUESTS = "it where the model is asked, as in llm.generate(…)"


def _as_device(value: object) -> str:
    is_named = isinstance(value, str) or type(value).__module__ == "torch"
    name = str(value).strip().lower() if is_named else ""
    if name in _FIRST_GPU:
        return "cuda:0"
    if not _DEVICE.fullmatch(name):
        raise InvalidSettingError("there is no such device", found=shown(value), allowed=DEVICES)
    return "cpu" if name.startswith("cpu") else name  # cpu:1 is no other one


def _as_devices(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= _MAX_DEVICES:
        raise InvalidSettingError(
            "setting 'devices' is not a list of devices",
            found=shown(value),
            allowed=f"1 to {_MAX_DEVICES:,} names",
            cure="Give either `device` or `devices`, the latter as a list of names.",
        )
    return tuple(map(_as_device, value))


def _as_dtype(value: object) -> str:
    """Returns the name of a dtype, of torch's own or one of its short names, too."""
    is_named = isinstance(value, str) or type(value).__module__ == "torch"
    name = str(value).strip().lower().removeprefix("torch.") if is_named else ""
    name = _SHORT_DTYPES.get(name, name)
    if name not in _DTYPES:
        raise InvalidSettingError("setting 'dtype' is not valid", found=shown(value), allowed=", ".join(_DTYPES))
    return name


class LoadSettings(RunConfig, KVCacheConfig, LoRAConfig):
    """Everything that a caller can say of a load, under the names of `registry.load`.

    Attributes:
        revision: a branch, tag or commit of a Hub repository.
        plugin: the distribution to take where several serve the model.
        device: a device's name.
        devices: several in place of it, one replica's after the other's; all of one kind.
        dtype: the precision to run in, or `"auto"`.
    """

    elsewhere: ClassVar[Mapping[str, str]] = _ELSEWHERE | dict.fromkeys(SamplingParams.model_fields, _IN_REQUESTS)

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
