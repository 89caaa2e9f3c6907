"""The memory plan: what a run needs, what there is, and what is left for the KV cache."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch

from pipezoo_core.config import PipelineConfig
from pipezoo_core.control_group import memory_left
from pipezoo_core.errors import InsufficientMemoryError, InsufficientPagesError
from pipezoo_core.interfaces import KVCacheMixin, PipelineModel
from pipezoo_core.lora import resolve_lora_config
from pipezoo_core.weights import torch_dtype

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["MemoryPlan", "available_memory", "plan_memory", "release_freed_memory"]

_USABLE = 0.9  # of what is free: the rest is for the interpreter, libraries, and neighbours
_CPU_SHARE = 0.25  # of what is left on a CPU, whose memory others use, too


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What the memory of a run is used for, in bytes; of each replica and each device where there are several.

    Attributes:
        num_replicas: of the model.
        num_ranks: devices that compute a replica together.
        weights: in the run's precision.
        activations: the most a step needs besides.
        lora: slots of adapters.
        states: slots for what layers keep of a request that have no pages.
        kv_cache: all pages.
        available: what was free on the device when the plan was made; of a device that several share, one's part.
        num_cache_tokens: tokens that fit the pages; where layers differ, those of the layers that keep all.
        max_length: most tokens of one request.
        concurrency: how many requests of the greatest length fit the cache at the same time.
    """

    num_replicas: int = 1
    num_ranks: int = 1
    weights: int
    activations: int
    lora: int
    states: int = 0
    kv_cache: int
    available: int
    num_cache_tokens: int
    max_length: int
    concurrency: float

    def __str__(self) -> str:
        sizes = ", ".join(
            f"{label} {_readable(size)}"
            for label, size in (
                ("weights", self.weights),
                ("activations", self.activations),
                ("adapters", self.lora),
                ("states", self.states),
                ("KV cache", self.kv_cache),
                ("available", self.available),
            )
            if size or label not in ("adapters", "states")
        )
        replicas = f"{self.num_replicas} replicas of: " if self.num_replicas > 1 else ""
        if self.num_ranks > 1:
            replicas += f"on each of {self.num_ranks} devices: "
        return (
            f"{replicas}{sizes}; the cache holds {self.num_cache_tokens} tokens, "
            f"{self.concurrency:.1f} requests of {self.max_length}"
        )


def _readable(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def available_memory(device: torch.device) -> int:
    """Returns the free bytes of the device; on a CPU what the machine and its control group have left."""
    if device.type == "cuda":
        gc.collect()  # a pipeline that nobody has any more may wait for it
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    free: int = psutil.virtual_memory().available
    left = memory_left()
    return free if left is None else min(free, left)


def release_freed_memory() -> None:
    """Gives back to the system what the process has freed but keeps: garbage in cycles, and what glibc's malloc holds.

    Loading frees about as much as it keeps, in pieces that lie between others.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def plan_memory(
    model: type[PipelineModel[Any]],
    pipeline_config: PipelineConfig,
    huggingface_config: PretrainedConfig,
    devices: Sequence[torch.device],
) -> tuple[PipelineConfig, MemoryPlan]:
    """Fills in what the settings leave open: adapters' slots, the KV cache's size, and the longest request's length.

    Reads the headers of the weight files, of adapters too, never the weights.

    Args:
        model: the plugin's class.
        pipeline_config: the settings.
        huggingface_config: what the model is.
        devices: of each replica or, where several devices compute one together, those of this host. Those on the same
            one, on a CPU all of them, share its memory.

    Returns:
        The completed config, and the plan.

    Raises:
        InvalidSettingError: `max_length` is above what the model can do.
        InsufficientMemoryError: the weights, or the cache that was asked for, do not fit.
        InsufficientPagesError: the cache is too small for one request.
        CheckpointError, ModelNotFoundError: an adapter cannot be read.
    """
    if pipeline_config.lora is not None:
        pipeline_config = pipeline_config.updated(lora=resolve_lora_config(pipeline_config.lora))
    kv_config = pipeline_config.kv_cache
    dtype = torch_dtype(pipeline_config.encoding)
    max_length = model.calculate_max_seq_len(pipeline_config, huggingface_config)
    weights = model.estimate_weights_size(pipeline_config)
    activations = model.estimate_activation_memory(pipeline_config, huggingface_config)
    lora = 0 if pipeline_config.lora is None else model.estimate_lora_memory(pipeline_config, huggingface_config)
    available = min(available_memory(device) // devices.count(device) for device in devices)
    num_ranks = pipeline_config.tensor_parallel_degree
    assert issubclass(model, KVCacheMixin), "all models so far have a KV cache"
    params = model.get_kv_params(huggingface_config, num_ranks, kv_config, dtype)
    max_chunk, batch_size = pipeline_config.max_batch_tokens, pipeline_config.max_batch_size
    states = params.state_bytes(batch_size)
    left = int(available * _USABLE) - weights - activations - lora - states
    share = left if devices[0].type == "cuda" else int(left * _CPU_SHARE)
    wanted = kv_config.kv_cache_memory
    if wanted is None:
        one_request = params.bytes_held(max_length, max_chunk)
        wanted = model.estimate_kv_cache_size(
            pipeline_config,
            min(left, max(share, one_request)),
            [devices[0]] * num_ranks,
            huggingface_config,
            kv_config,
            dtype,
        )
    longest = params.longest_in(max(0, wanted))
    if pipeline_config.max_length is None:
        most = params.max_tokens_in(params.divide(wanted, batch_size, max_length, max_chunk))
        max_length = max(1, min(max_length, most))
    num_pages = params.divide(wanted, batch_size, max_length, max_chunk)
    held = params.num_pages_held(max_length, max_chunk=1)
    unbounded = [count for count, group in zip(num_pages, params.groups, strict=True) if group.reach is None]
    plan = MemoryPlan(
        num_replicas=pipeline_config.data_parallel_degree,
        num_ranks=num_ranks,
        weights=weights,
        activations=activations,
        lora=lora,
        states=states,
        kv_cache=max(0, wanted),
        available=available,
        num_cache_tokens=max(unbounded or num_pages) * params.page_size,
        max_length=max_length,
        concurrency=min(count / needed for count, needed in zip(num_pages, held, strict=True)),
    )
    if left < 0:
        raise _too_large(plan, model, pipeline_config, huggingface_config, -left)
    if (kv_config.kv_cache_memory or 0) > left:
        or_fewer = " or data_parallel_degree" if plan.num_replicas > 1 else ""
        raise InsufficientMemoryError(
            "the KV cache that kv_cache_memory asks for does not fit the memory",
            found=plan,
            allowed=f"kv_cache_memory of at most {_readable(left)}",
            cure=f"Lower kv_cache_memory{or_fewer}, or leave it out.",
        )
    if longest < max_length or max_length < 2:
        needed = params.bytes_held(max(2, max_length), max_chunk=1)
        shorter = f", or max_length of at most {longest}" if longest >= 2 else ""
        raise InsufficientPagesError(
            "the KV cache is too small for one request",
            found=plan,
            allowed=f"kv_cache_memory of at least {needed} bytes{shorter}",
            cure="Raise kv_cache_memory, or lower max_length or page_size.",
        )
    completed = pipeline_config.updated(max_length=max_length, kv_cache=kv_config.updated(kv_cache_memory=wanted))
    return completed, plan


def _too_large(
    plan: MemoryPlan,
    model: type[PipelineModel[Any]],
    config: PipelineConfig,
    huggingface_config: PretrainedConfig,
    excess: int,
) -> InsufficientMemoryError:
    """Names the setting to change: the first of which a smaller value can help, else the precision of the weights."""
    name, value, size = "dtype", str(config.encoding), plan.weights
    if plan.num_replicas > 1:
        name, value, size = "data_parallel_degree", str(plan.num_replicas), plan.num_replicas * plan.weights
    elif config.lora is not None and excess < plan.lora:
        name, value, size = "max_num_loras", str(config.lora.max_num_loras), plan.lora
    elif excess < plan.states:
        name, value, size = "max_batch_size", str(config.max_batch_size), plan.states
    elif excess < plan.activations:
        name, value, size = _setting_of_steps(model, config, huggingface_config)
    return InsufficientMemoryError(
        "the model does not fit the memory",
        found=plan,
        allowed=f"{_readable(excess)} less",
        cure=f"Take a smaller {name}: {value} needs {_readable(size)}. Or take a machine with more memory.",
    )


def _setting_of_steps(
    model: type[PipelineModel[Any]], config: PipelineConfig, huggingface_config: PretrainedConfig
) -> tuple[str, str, int]:
    """Returns the setting of which the smallest value saves most of a step's activations, what it is, and how much."""
    least = {"max_batch_tokens": 1, "max_batch_size": 1, "max_length": 2}

    def needed(**changes: int) -> int:
        return model.estimate_activation_memory(config.updated(**changes), huggingface_config)

    name = min(least, key=lambda name: needed(**{name: least[name]}))
    value = getattr(config, name) or model.calculate_max_seq_len(config, huggingface_config)
    return name, str(value), needed() - needed(**{name: least[name]})
