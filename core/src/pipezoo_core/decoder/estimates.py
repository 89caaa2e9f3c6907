"""What a decoder-only model will need, known from its config and its outline before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import nn

from pipezoo_core.attention import AttentionBackends, AttentionSpec, NativeAttention, kv_groups
from pipezoo_core.config import KVCacheConfig, LinearName, PipelineConfig
from pipezoo_core.decoder.config import DecoderConfig
from pipezoo_core.decoder.replay import why_not_recorded
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.kv_cache import KVCacheParams
from pipezoo_core.layers import DEQUANTIZED_AT_ONCE, KernelUse, as_split, estimable_layers
from pipezoo_core.lora import adaptable_layers, numbers_while_added
from pipezoo_core.native import NativeKernels
from pipezoo_core.recurrence import ShortConvolution, StateSpec
from pipezoo_core.sampling_params import NUM_ECHOED_AT_ONCE, NUMBERS_SAMPLED_AT_ONCE
from pipezoo_core.weights import torch_dtype

__all__ = ["activation_memory", "cache_params", "kernel_use", "part_of"]

# Bytes per number of what is alive together:
_FLOAT_BYTES = 4  # of a weight that is dequantized, before it has the run's precision
_LOGIT_BYTES = 4  # in float32
_SAMPLED_BYTES = 48  # see `pipeline.sampler`: a dozen tensors like the logits

# Measured, see docs/decisions/memory-plan.md:
_HOLES = 1.1  # malloc keeps freed pieces that nothing fits
_OTHERS = 18 * 2**20  # of any model: recorded steps, Python's objects
_THREAD = 2 * 2**20  # of each thread: the kernels' buffers


def part_of(config: DecoderConfig, rank: int, num_ranks: int) -> list[AttentionSpec | StateSpec | None]:
    """Returns what one of several ranks computes of each layer's attention, and what states its layers keep.

    Raises:
        InvalidSettingError: the heads cannot be divided among so many, or layers keep a state, which is not divided.
    """
    if num_ranks > 1 and config.states:
        raise InvalidSettingError(
            "a model whose layers keep a state is computed on one device",
            found=f"{num_ranks} devices",
            cure="Take one device, or data_parallel_degree for several replicas.",
        )
    return [spec.part(rank, num_ranks) if isinstance(spec, AttentionSpec) else spec for spec in config.layers]


def cache_params(
    config: DecoderConfig, n_devices: int, kv_cache_config: KVCacheConfig, dtype: torch.dtype, *, model_id: str = ""
) -> KVCacheParams:
    """Returns the shape of the cache of one device, where devices differ of the one with most heads."""
    return KVCacheParams(
        dtype=dtype,
        groups=kv_groups(part_of(config, n_devices - 1, n_devices)),  # the last one has what does not divide
        page_size=kv_cache_config.page_size,
        enable_prefix_caching=kv_cache_config.enable_prefix_caching,
        model_id=model_id,
        max_shareable_prompt=config.max_shareable_prompt,
        states=config.states,
    )


def kernel_use(pipeline_config: PipelineConfig) -> KernelUse:
    """Returns what the native kernels will compute of a model's layers.

    Args:
        pipeline_config: complete.
    """
    kernels = NativeKernels(torch.device(pipeline_config.device), torch_dtype(pipeline_config.encoding))
    return KernelUse(
        is_native=kernels.obstacle is None and pipeline_config.linear in (LinearName.auto, LinearName.native),
        fuse=pipeline_config.fuses_layers,
        fuse_experts=pipeline_config.fuses_experts,
        itemsize=kernels.dtype.itemsize,
    )


def activation_memory(config: DecoderConfig, outline: nn.Module, pipeline_config: PipelineConfig) -> int:
    """Returns the bytes of a full step's layer, and of a full batch's logits and sampling.

    A step that is replayed has memory of its own, as much as the layer that needs most. One that native kernels compute
    otherwise shares pieces of memory with the logits; else malloc keeps what does not fit what comes next, and all of
    it adds up: see docs/decisions/memory-plan.md. Prompts that are echoed are fed so that their logits fit.

    Args:
        config: of the model.
        outline: of its module, see `outline_of`.
        pipeline_config: complete.
    """
    kernels = NativeKernels(torch.device(pipeline_config.device), torch_dtype(pipeline_config.encoding))
    num_ranks, itemsize = pipeline_config.tensor_parallel_degree, kernels.dtype.itemsize
    specs = part_of(config, num_ranks - 1, num_ranks)
    backends = AttentionBackends(pipeline_config.attention, specs, kernels, pipeline_config.kv_cache.page_size)
    use = kernel_use(pipeline_config)
    is_native = use.is_native
    inner = max(as_split(config.intermediate_size).sizes(num_ranks))
    attentions = {spec for spec in specs if isinstance(spec, AttentionSpec)}
    attention = [_attention(spec) for spec in attentions]
    layers = estimable_layers(outline)
    said = [layer.alive(use) for layer in layers]
    num_tokens, max_length = pipeline_config.max_batch_tokens, config.longest_request(pipeline_config.max_length)
    last = _last_tensors(config, pipeline_config)
    others = _OTHERS + _THREAD * torch.get_num_threads()
    others += max(NUMBERS_SAMPLED_AT_ONCE, config.vocab_size) * _SAMPLED_BYTES
    others += max(backend.working_memory(num_tokens, max_length, itemsize) for backend in backends.of_layers)
    others += sum(each.planned_memory(pipeline_config.max_batch_size, max_length) for each in backends.of_groups)
    if not is_native:
        convolutions = [layer for layer in outline.modules() if isinstance(layer, ShortConvolution)]
        of_states = [layer.working_memory(num_tokens, pipeline_config.max_batch_size) for layer in convolutions]
        others += max(of_states, default=0)
    if (lora := pipeline_config.lora) is not None:
        assert lora.max_lora_rank is not None
        adaptable = adaptable_layers(outline, experts=bool(lora.lora_experts))
        added = (numbers_while_added(layer, len(parts), lora.max_lora_rank) for layer, parts in adaptable)
        others += num_tokens * itemsize * max(added, default=0)
    if pipeline_config.encoding.is_quantized and not is_native:
        others += DEQUANTIZED_AT_ONCE * (_FLOAT_BYTES + itemsize)
    hidden, number = config.hidden_size, num_tokens * itemsize
    is_pooled = is_native and bool(layers) and all(isinstance(each, NativeAttention) for each in backends.of_groups)
    is_replayed = is_pooled and why_not_recorded(pipeline_config, backends, num_ranks) is None
    if is_replayed:
        others += number * _width_of_step(hidden, max(2 * spec.head_dim for spec in attentions), [*attention, *said])
    if is_replayed and pipeline_config.lora is None:
        return others + sum(last)
    # Python keeps the normalized input until a layer returns, and what goes into the last product of an attention
    halves = [[*widths, hidden] for widths in attention] + (said or [[inner, inner]])
    moments = [[number * width for width in (hidden, hidden, *widths)] for widths in halves]
    if is_pooled:
        return others + _pooled([*moments, last])
    return int((others + max(map(sum, moments)) + sum(last)) * _HOLES)


def _last_tensors(config: DecoderConfig, pipeline_config: PipelineConfig) -> list[int]:
    """Returns the bytes of the logits of a full batch, of those that are sampled from, and of what ranks gather."""
    row, num_ranks = config.vocab_size * _LOGIT_BYTES, pipeline_config.tensor_parallel_degree
    logits = (pipeline_config.max_batch_size + NUM_ECHOED_AT_ONCE) * row
    gathered = [logits, 2 * logits // num_ranks] if num_ranks > 1 else []  # the ranks' parts, which become one
    return [logits, pipeline_config.max_batch_size * row, *gathered]


def _width_of_step(hidden: int, angles: int, layers: Sequence[Sequence[int]]) -> int:
    """Returns about the numbers per row that a replayed step takes for its tensors, each let go of after its last use.

    Those are cosines and sines of rotary positions, a layer's input, and what is alive in the layer. What fits takes
    the place of the normalized input; where nothing does, that stays empty.
    """
    return angles + hidden + max(sum(widths) + (hidden if min(widths) > hidden else 0) for widths in layers)


def _attention(spec: AttentionSpec) -> list[int]:
    """Returns what is alive in a layer's attention that makes no more than it has to."""
    keys = spec.num_kv_heads * (spec.head_dim + (0 if spec.values_in_keys else spec.value_size))
    return [spec.num_heads * spec.head_dim + keys, spec.num_heads * spec.value_size]


def _pooled(moments: Sequence[Sequence[int]]) -> int:
    """Returns about the bytes of a `MemoryPool` that serves these moments; its largest piece is that of any of them.

    [5, 4] and [11, 2, 1] come to 11 + 4 + 1.
    """
    sizes = (sorted(moment, reverse=True) for moment in moments)
    return sum(max(column) for column in zip_longest(*sizes, fillvalue=0))
