"""What a decoder-only model will need, known from its config before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from pipezoo_core.attention import NativeAttention, select_backend
from pipezoo_core.config import AttentionName, KVCacheConfig, LinearName, PipelineConfig
from pipezoo_core.context import TextContext
from pipezoo_core.decoder.config import DecoderConfig
from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.interfaces import KVCacheMixin, PipelineModel, upper_bounded_default
from pipezoo_core.kv_cache import KVCacheParams, PagedKVCacheManager
from pipezoo_core.layers import DEQUANTIZED_AT_ONCE, GatedMLP, as_split, shard_module, weights_memory
from pipezoo_core.lora import lora_memory
from pipezoo_core.native import NativeKernels
from pipezoo_core.sampling_params import NUM_ECHOED_AT_ONCE, NUMBERS_SAMPLED_AT_ONCE
from pipezoo_core.weights import torch_dtype

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["DecoderEstimates"]

# Bytes per number of what is alive together:
_BIAS_BYTES = 13  # distances in int64, whether they are hidden, and the bias in float32
_FLOAT_BYTES = 4  # of a weight that is dequantized, before it has the run's precision
_LOGIT_BYTES = 4  # in float32
_SAMPLED_BYTES = 48  # see `pipeline.sampler`: a dozen tensors like the logits

# Measured, see docs/decisions/memory-plan.md:
_HOLES = 1.1  # malloc keeps freed pieces that nothing fits
_OTHERS = 14 * 2**20  # of any model: recorded steps, Python's objects
_THREAD = 2 * 2**20  # of each thread: the kernels' buffers


class DecoderEstimates(PipelineModel[TextContext], KVCacheMixin):
    """The part of `DecoderPipelineModel` that is asked before a model is loaded: lengths, shapes, and bytes.

    Attributes:
        config_class: the plugin's config.
        module_class: the plugin's module.
    """

    config_class: ClassVar[type[DecoderConfig]]
    module_class: ClassVar[Any]

    @classmethod
    def calculate_max_seq_len(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> int:
        """Returns `max_length`, or where it is not set the longest request the positions reach."""
        bound = cls.config_class.from_huggingface(huggingface_config).max_seq_len
        try:
            return upper_bounded_default(upper_bound=bound, default=pipeline_config.max_length)
        except ValueError as error:
            raise InvalidSettingError(
                "max_length is above what the model can do",
                found=pipeline_config.max_length,
                allowed=f"at most {bound}",
            ) from error

    @classmethod
    def get_num_layers(cls, huggingface_config: PretrainedConfig) -> int:
        """Returns the number of decoder layers."""
        return cls.config_class.from_huggingface(huggingface_config).num_layers

    @classmethod
    def get_kv_params(
        cls,
        huggingface_config: PretrainedConfig,
        n_devices: int,
        kv_cache_config: KVCacheConfig,
        cache_dtype: torch.dtype,
        *,
        model_id: str = "",
    ) -> KVCacheParams:
        """Returns the shape of the cache of one device, where devices differ of the one with most heads."""
        config = cls.config_class.from_huggingface(huggingface_config)
        spec = config.attention.part(n_devices - 1, n_devices)  # the last one has what does not divide
        return KVCacheParams(
            dtype=cache_dtype,
            num_layers=config.num_layers,
            num_kv_heads=spec.num_kv_heads,
            head_dim=config.head_dim,
            page_size=kv_cache_config.page_size,
            enable_prefix_caching=kv_cache_config.enable_prefix_caching,
            model_id=model_id,
            max_shareable_prompt=config.max_shareable_prompt,
            sliding_window=config.attention.sliding_window,
        )

    @classmethod
    def estimate_kv_cache_size(
        cls,
        pipeline_config: PipelineConfig,
        available_cache_memory: int,
        devices: Sequence[torch.device],
        huggingface_config: PretrainedConfig,
        kv_cache_config: KVCacheConfig,
        cache_dtype: torch.dtype,
    ) -> int:
        """Returns what a full batch of longest requests takes, or what is available where that is less."""
        params = cls.get_kv_params(huggingface_config, len(devices), kv_cache_config, cache_dtype)
        length = cls.calculate_max_seq_len(pipeline_config, huggingface_config)
        num_held = params.num_tokens_held(length, pipeline_config.max_batch_tokens)
        return PagedKVCacheManager.estimated_memory_size(
            params, pipeline_config.max_batch_size, num_held, available_cache_memory
        )

    @classmethod
    def estimate_activation_memory(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> int:
        """Returns the bytes of a full step's layer, and of a full batch's logits and sampling.

        Where native kernels compute all of a layer, pieces of memory serve one moment after the other; else malloc
        keeps what does not fit what comes next, and all of it adds up: see docs/decisions/memory-plan.md. Prompts that
        are echoed are fed so that their logits fit.
        """
        config = cls.config_class.from_huggingface(huggingface_config)
        kernels = NativeKernels(torch.device(pipeline_config.device), torch_dtype(pipeline_config.encoding))
        num_ranks = pipeline_config.tensor_parallel_degree
        spec = config.attention.part(num_ranks - 1, num_ranks)
        backend = select_backend(pipeline_config.attention, spec, kernels, pipeline_config.kv_cache.page_size)
        num_tokens, num_requests = pipeline_config.max_batch_tokens, pipeline_config.max_batch_size
        hidden, itemsize = config.hidden_size, kernels.dtype.itemsize
        inner = max(as_split(config.intermediate_size).sizes(num_ranks))
        queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        is_native = kernels.obstacle is None and pipeline_config.linear in (LinearName.auto, LinearName.native)
        fuse = pipeline_config.lora is None
        gated = [m for m in cls._outline(pipeline_config, huggingface_config).modules() if isinstance(m, GatedMLP)]
        feed_forward = max((m.alive(is_native=is_native, fuse=fuse) for m in gated), default=[inner, inner], key=sum)
        attention = [queries + 2 * keys, queries, hidden]
        layer = [[hidden, hidden, *half] for half in (attention, feed_forward)]  # with a layer's input, and a norm
        moments = [[num_tokens * width * itemsize for width in half] for half in layer]
        row = config.vocab_size * _LOGIT_BYTES
        logits = (num_requests + NUM_ECHOED_AT_ONCE) * row
        gathered = [logits, 2 * logits // num_ranks] if num_ranks > 1 else []  # the ranks' parts, which become one
        moments.append([logits, num_requests * row, *gathered])
        others = _OTHERS + _THREAD * torch.get_num_threads()
        others += max(NUMBERS_SAMPLED_AT_ONCE, config.vocab_size) * _SAMPLED_BYTES
        if pipeline_config.lora is not None:
            others += 2 * num_tokens * inner * itemsize  # what an adapter adds to the widest product
        if pipeline_config.encoding.is_quantized and not is_native:
            others += DEQUANTIZED_AT_ONCE * (_FLOAT_BYTES + itemsize)
        if not isinstance(backend, NativeAttention):
            length = cls.calculate_max_seq_len(pipeline_config, huggingface_config)
            others += _BIAS_BYTES * min(num_tokens, length) * length + 2 * length * (queries + keys) * itemsize
        if is_native and gated and isinstance(backend, NativeAttention):
            return others + _pooled(moments)
        return int((others + max(map(sum, moments[:-1])) + sum(moments[-1])) * _HOLES)

    @classmethod
    def estimate_lora_memory(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> int:
        """Returns the bytes of the slots, which every linear layer but the head has, and of adapters in host memory."""
        assert pipeline_config.lora is not None
        module = cls._outline(pipeline_config, huggingface_config)
        return lora_memory(pipeline_config.lora, module, torch.device(pipeline_config.device))

    @classmethod
    def _outline(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> nn.Module:
        """Returns the module in the run's precision, on the meta device: shapes without numbers.

        Of several ranks it is that of the last one, whose part is the largest.
        """
        config, dtype = cls.config_class.from_huggingface(huggingface_config), torch_dtype(pipeline_config.encoding)
        kernels = NativeKernels(torch.device("meta"), dtype)
        backend = select_backend(AttentionName.reference, config.attention, kernels, pipeline_config.kv_cache.page_size)
        with torch.device("meta"):
            module: nn.Module = cls.module_class(config, backend)
        num_ranks = pipeline_config.tensor_parallel_degree
        if num_ranks > 1:
            shard_module(module, TensorParallelGroup(num_ranks - 1, num_ranks))
        return module.to(dtype)

    @classmethod
    def estimate_weights_size(cls, pipeline_config: PipelineConfig) -> int:
        """Returns the bytes of the weights in the form that they are computed from, padding and scales included."""
        device, encoding = torch.device(pipeline_config.device), pipeline_config.encoding
        module = cls._outline(pipeline_config, pipeline_config.huggingface_config)
        kernels = NativeKernels(device, torch_dtype(encoding))
        return weights_memory(pipeline_config.linear, module, device, encoding, kernels)


def _pooled(moments: Sequence[Sequence[int]]) -> int:
    """Returns about the bytes of a `MemoryPool` that serves these moments; its largest piece is that of any of them.

    [5, 4] and [11, 2, 1] come to 11 + 4 + 1.
    """
    sizes = (sorted(moment, reverse=True) for moment in moments)
    return sum(max(column) for column in zip_longest(*sizes, fillvalue=0))
