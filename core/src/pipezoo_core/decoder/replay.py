"""How a model's steps will run, and whether they will be replayed, found out before anything is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipezoo_core.attention import AttentionBackends, NativeAttention
from pipezoo_core.config import AttentionName, PipelineConfig
from pipezoo_core.decoder.config import DecoderConfig
from pipezoo_core.decoder.outlook import StepOutlook
from pipezoo_core.decoder.recorded_module import RecordedModule
from pipezoo_core.kv_cache import KVCacheInputs, KVCacheStorage, RaggedBatch
from pipezoo_core.layers import join_experts, set_dtype, use_linear_backend
from pipezoo_core.native import MemoryPool, NativeKernels, Recording
from pipezoo_core.weights import keep_outline, torch_dtype

__all__ = ["step_outlook", "why_not_recorded"]


def why_not_recorded(pipeline_config: PipelineConfig, backends: AttentionBackends, num_ranks: int) -> str | None:
    """Returns what keeps steps from being recorded, whatever the module does; None where nothing does."""
    if pipeline_config.enforce_eager:
        return "enforce_eager is set"
    if num_ranks > 1:
        return "several devices compute the model"
    other = next((each.name for each in backends.of_groups if not isinstance(each, NativeAttention)), None)
    return None if other is None else f"the attention is {other!r}, and not 'native'"


@torch.inference_mode()
def step_outlook(module_class: Any, config: DecoderConfig, pipeline_config: PipelineConfig) -> StepOutlook:
    """Returns what will compute a model's steps, and what stands in the way of replaying them.

    The module is recorded as it would be when it is loaded. Its weights are memory that is neither read nor written, so
    it takes a fraction of a second, and next to no memory.

    Args:
        module_class: the plugin's.
        config: of the model.
        pipeline_config: complete.
    """
    kernels = NativeKernels(torch.device(pipeline_config.device), torch_dtype(pipeline_config.encoding))
    page_size = pipeline_config.kv_cache.page_size
    backends = AttentionBackends(pipeline_config.attention, config.layers, kernels, page_size)
    attention = _attention(backends, pipeline_config.attention)
    if reason := why_not_recorded(pipeline_config, backends, pipeline_config.tensor_parallel_degree):
        return StepOutlook(attention, reason)
    module = _without_numbers(module_class, config, backends, kernels, pipeline_config)
    step = _empty_step(config, backends, pipeline_config)
    recorded = RecordedModule(module, kernels, pipeline_config.max_batch_tokens)
    return StepOutlook(attention, recorded.obstacle_to(1, step), recorded.operations)


def _attention(backends: AttentionBackends, name: AttentionName) -> str:
    """Names the backends of the groups of layers, and what kept `auto` from choosing the kernels."""
    names = [
        f"{backend.name} (no kernel: {why})" if name is AttentionName.auto and why else backend.name
        for backend, why in zip(backends.of_groups, backends.obstacles, strict=True)
    ]
    return ", ".join(dict.fromkeys(names))


def _without_numbers(
    module_class: Any,
    config: DecoderConfig,
    backends: AttentionBackends,
    kernels: NativeKernels,
    pipeline_config: PipelineConfig,
) -> nn.Module:
    with torch.device("meta"):
        module: nn.Module = module_class(config, backends)
    set_dtype(module, kernels.dtype)
    keep_outline(module, pipeline_config.stored_types, MemoryPool())
    module.to_empty(device=pipeline_config.device).eval()
    with Recording(kernels):  # in which nothing is packed
        use_linear_backend(
            pipeline_config.linear,
            module,
            torch.device(pipeline_config.device),
            pipeline_config.encoding,
            kernels,
            fuse=pipeline_config.fuses_layers,
            fuse_experts=pipeline_config.fuses_experts,
        )
    join_experts(module)
    return module


def _empty_step(
    config: DecoderConfig, backends: AttentionBackends, pipeline_config: PipelineConfig
) -> KVCacheInputs[Any]:
    device, dtype = torch.device(pipeline_config.device), torch_dtype(pipeline_config.encoding)
    num_pages = [1] * len(backends.groups)
    page_size = pipeline_config.kv_cache.page_size
    storage = KVCacheStorage(backends, num_pages, page_size, dtype, device, config.states, 1)
    integers = torch.zeros(1, dtype=torch.int64, device=device)
    return KVCacheInputs(
        positions=integers,
        context_lengths=integers,
        input_row_offsets=integers,
        cache_lengths=integers,
        batch=RaggedBatch([], [], [], []),
        key_pages=storage.key_pages,
        value_pages=storage.value_pages,
        plans=(None,) * len(num_pages),
        states=storage.states,
    )
