"""The ready-made `PipelineModel` for decoder-only models: a plugin brings a typed config and an `nn.Module`."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from pipezoo_core.attention import AttentionBackend, AttentionSpec, NativeAttention, select_backend
from pipezoo_core.config import (
    AttentionName,
    KVCacheConfig,
    LinearName,
    PipelineConfig,
    ReturnLogits,
    SupportedEncoding,
)
from pipezoo_core.context import TextContext
from pipezoo_core.distributed import DistributedGroup, TensorParallelGroup
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.interfaces import (
    AlwaysSignalBuffersMixin,
    KVCacheMixin,
    ModelInputs,
    ModelOutputs,
    PipelineModel,
    upper_bounded_default,
)
from pipezoo_core.kv_cache import KVCacheInputs, KVCacheParams, PagedKVCacheManager, RaggedBatch
from pipezoo_core.layers import Heads, as_split, shard_module, use_linear_backend, weights_memory
from pipezoo_core.lora import LoRAManager, lora_memory
from pipezoo_core.native import NativeKernels, RecordedModule
from pipezoo_core.sampling_params import NUM_ECHOED_AT_ONCE, NUMBERS_SAMPLED_AT_ONCE
from pipezoo_core.session import InferenceSession
from pipezoo_core.weights import LazyTensor, Weights, WeightsAdapter, load_module, torch_dtype

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["DecoderConfig", "DecoderInputs", "DecoderModule", "DecoderPipelineModel"]

# Bytes per number of what is alive together:
_BIAS_BYTES = 13  # distances in int64, whether they are hidden, and the bias in float32
_LOGIT_BYTES = 8  # in float32, and once more where penalties or a grammar change them
_HOLES = 1.1  # malloc keeps freed pieces that nothing fits: measured, see docs/decisions/memory-plan.md
_SAMPLED_BYTES = 50  # see `pipeline.sampler`: a dozen tensors like the logits, two of them in float64, one of indices


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig(abc.ABC):
    """What every decoder-only model has; a plugin's config adds what is its own.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: numbers per token between layers.
        intermediate_size: numbers per token inside the feed-forward layer.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: numbers per head.
        max_seq_len: the longest request the positions reach.
        max_shareable_prompt: see `KVCacheParams`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_seq_len: int
    max_shareable_prompt: int | None = None

    @classmethod
    @abc.abstractmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a Hugging Face config.

        Raises:
            UnsupportedModelError: it asks for something the model cannot do.
        """

    @property
    @abc.abstractmethod
    def attention(self) -> AttentionSpec:
        """What the attention layers compute."""

    @property
    def heads(self) -> Heads:
        """The attention heads, as dimensions that devices can divide."""
        return Heads(self.num_heads, self.num_kv_heads, self.head_dim)


class DecoderModule(Protocol):
    """What `DecoderPipelineModel` needs of a plugin's module. Built as `Module(config, backend)`."""

    def __call__(self, tokens: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, hidden_size]."""
        ...

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [rows, hidden_size] to logits [rows, vocab_size]."""
        ...


class DecoderInputs(ModelInputs):
    """Inputs of a decoder-only model.

    Args:
        tokens: int64 [T], the chunks of all requests one after another.
        input_row_offsets: int64 [B + 1], where each request's chunk begins.
        logit_rows: int64 [rows], the rows that get logits.
        logit_offsets: int64 [B + 1], where each request's rows begin in `logit_rows`.
        kv_cache_inputs: the step's view of the KV cache.
    """

    def __init__(
        self,
        tokens: Tensor,
        input_row_offsets: Tensor,
        logit_rows: Tensor,
        logit_offsets: Tensor,
        kv_cache_inputs: KVCacheInputs[Any],
    ) -> None:
        self.tokens = tokens
        self.input_row_offsets = input_row_offsets
        self.logit_rows = logit_rows
        self.logit_offsets = logit_offsets
        self.kv_cache_inputs = kv_cache_inputs


class DecoderPipelineModel(AlwaysSignalBuffersMixin, PipelineModel[TextContext], KVCacheMixin):
    """Implements all of `PipelineModel` over a plugin's config and module.

    A subclass sets two class attributes and nothing else:

        class LlamaPipelineModel(DecoderPipelineModel):
            config_class = LlamaConfig
            module_class = LlamaForCausalLM

    With several devices it is one of the ranks that compute a model together. Rank 0 is used as on a single device; it
    decides everything and sends each step to the others, who `serve`. The module is the same on all, a part of it.
    """

    config_class: ClassVar[type[DecoderConfig]]
    module_class: ClassVar[Any]

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        session: InferenceSession,
        huggingface_config: PretrainedConfig,
        encoding: SupportedEncoding,
        devices: Sequence[torch.device],
        kv_cache_config: KVCacheConfig,
        weights: Weights,
        adapter: WeightsAdapter | None,
        return_logits: ReturnLogits = ReturnLogits.VARIABLE,
    ) -> None:
        self.config = self.config_class.from_huggingface(huggingface_config)
        self._kernels = NativeKernels(session.device, torch_dtype(encoding))
        self._group = session.group
        spec = self.config.attention.part(self._group.rank, self._group.size)
        self._backend: AttentionBackend = select_backend(
            pipeline_config.attention, spec, self._kernels, kv_cache_config.page_size
        )
        super().__init__(
            pipeline_config,
            session,
            huggingface_config,
            encoding,
            devices,
            kv_cache_config,
            weights,
            adapter,
            return_logits,
        )
        self.module = self._load_module()
        self._lora_manager = self._load_lora_manager()
        self._forward: Callable[[Tensor, KVCacheInputs[Any]], Tensor] = self.module
        is_recordable = isinstance(self._backend, NativeAttention) and self._group.size == 1
        if is_recordable and not pipeline_config.enforce_eager:
            self._forward = RecordedModule(self.module, self._kernels)

    def _load_module(self) -> DecoderModule:
        with torch.device("meta"):
            module: nn.Module = self.module_class(self.config, self._backend)
        load_module(
            module,
            self._adapt(self.weights),
            self.session.device,
            self.dtype,
            self._convert,
            in_full=self.encoding.is_quantized,  # so that the numbers of a Q8_0 file stay what they are in int8
            group=self._group,
        )
        return module.eval()  # type: ignore[return-value]  # nn.Module.__call__ is typed as Any

    def _convert(self, part: nn.Module) -> None:
        use_linear_backend(
            self.pipeline_config.linear,
            part,
            self.session.device,
            self.encoding,
            self._kernels,
            fuse=self.pipeline_config.lora is None,  # an adapter may change a layer alone
        )

    def _adapt(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        return dict(tensors) if self.adapter is None else self.adapter(tensors, self.huggingface_config)

    def _load_lora_manager(self) -> LoRAManager | None:
        if self.pipeline_config.lora is None:
            return None
        assert isinstance(self.module, nn.Module)
        return LoRAManager(
            self.pipeline_config.lora,
            self.module,
            self._adapt,
            device=self.session.device,
            dtype=self.dtype,
        )

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

        These come one after the other, but malloc keeps what it has in pieces that the next does not always fit: see
        docs/decisions/memory-plan.md. Prompts that are echoed are fed so that their logits fit.
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
        attention = 2 * (queries + keys) + hidden
        is_native = kernels.obstacle is None and pipeline_config.linear in (LinearName.auto, LinearName.native)
        feed_forward = 4 * inner
        if is_native:
            feed_forward = inner + hidden if pipeline_config.lora is None else 3 * inner
        width = 3 * hidden + max(attention, feed_forward)  # a layer's input, the sum with its first half, a norm
        needed = num_tokens * width * itemsize
        needed += (num_requests + NUM_ECHOED_AT_ONCE) * config.vocab_size * _LOGIT_BYTES
        needed += max(NUMBERS_SAMPLED_AT_ONCE, config.vocab_size) * _SAMPLED_BYTES
        if not isinstance(backend, NativeAttention):
            length = cls.calculate_max_seq_len(pipeline_config, huggingface_config)
            needed += _BIAS_BYTES * min(num_tokens, length) * length + 2 * length * (queries + keys) * itemsize
        return int(needed * _HOLES)

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

    def load_kv_manager(self, session: InferenceSession, available_cache_memory: int | None) -> PagedKVCacheManager:
        """Allocates the cache on the session's device."""
        params = self.get_kv_params(
            self.huggingface_config,
            len(self.devices),
            self.kv_cache_config,
            self.dtype,
            model_id=self.pipeline_config.model_path,
        )
        if available_cache_memory is None:
            num_held = params.num_tokens_held(self.max_seq_len, self.pipeline_config.max_batch_tokens)
            num_pages = self.pipeline_config.max_batch_size * params.num_pages_for(num_held)
        else:
            num_pages = available_cache_memory // params.bytes_per_page
        params = replace(params, num_kv_heads=self._backend.spec.num_kv_heads)
        return PagedKVCacheManager(params, num_pages, self._backend, session.device)

    def prepare_initial_token_inputs(
        self,
        context_batch: Sequence[TextContext],
        kv_cache_inputs: KVCacheInputs[Any] | None = None,
        return_n_logits: int = 1,
    ) -> DecoderInputs:
        """Makes inputs of the contexts' chunks.

        A context that echoes gets the logits of its whole chunk, the others as many as `return_logits` says: of the
        whole chunk, of its last `return_n_logits` tokens where it has so many, or of its last token. With
        `return_n_logits=1` and chunks of 1 and 3 tokens, the second of a request that echoes, `logit_rows` is
        [0, 1, 2, 3] and `logit_offsets` [0, 1, 4].
        """
        assert kv_cache_inputs is not None, "a decoder needs a KV cache"
        tokens: list[int] = []
        rows: list[int] = []
        offsets = [0]
        most = 1 if self.return_logits is ReturnLogits.LAST_TOKEN else return_n_logits
        for context in context_batch:
            tokens += context.chunk
            wants_all = context.wants_prompt_logits or self.return_logits is ReturnLogits.ALL
            wanted = context.active_length if wants_all else min(most, context.active_length)
            rows += range(len(tokens) - wanted, len(tokens))
            offsets.append(len(rows))
        device = self.session.device
        inputs = DecoderInputs(
            tokens=torch.tensor(tokens, device=device),
            input_row_offsets=kv_cache_inputs.input_row_offsets,
            logit_rows=torch.tensor(rows, device=device),
            logit_offsets=torch.tensor(offsets, device=device),
            kv_cache_inputs=kv_cache_inputs,
        )
        if self.lora_manager is not None:
            inputs.lora_ids, inputs.lora_ranks = self.lora_manager.inputs_of(context_batch)
        return inputs

    def prepare_next_token_inputs(self, next_tokens: Tensor, prev_model_inputs: ModelInputs) -> DecoderInputs:
        """Makes inputs of one new token per request."""
        assert prev_model_inputs.kv_cache_inputs is not None
        rows = torch.arange(len(next_tokens) + 1, device=next_tokens.device)
        inputs = DecoderInputs(
            tokens=next_tokens,
            input_row_offsets=rows,
            logit_rows=rows[:-1],
            logit_offsets=rows,
            kv_cache_inputs=prev_model_inputs.kv_cache_inputs,
        )
        inputs.lora_ids, inputs.lora_ranks = prev_model_inputs.lora_ids, prev_model_inputs.lora_ranks
        return inputs

    @torch.inference_mode()
    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        """Runs the module once and computes the wanted rows of logits, in float32.

        Raises:
            RankLostError: another device's process is gone; the model cannot be used any more.
        """
        assert isinstance(model_inputs, DecoderInputs)
        assert model_inputs.kv_cache_inputs is not None
        if isinstance(self._group, DistributedGroup):
            with self._group.step():
                self._group.send(_as_lists(model_inputs, model_inputs.kv_cache_inputs.batch))
                logits = self._logits(model_inputs, model_inputs.kv_cache_inputs)
        else:
            logits = self._logits(model_inputs, model_inputs.kv_cache_inputs)
        last_rows = model_inputs.logit_offsets[1:] - 1
        return ModelOutputs(
            logits=logits,
            next_token_logits=logits if len(logits) == len(last_rows) else logits[last_rows],
            logit_offsets=model_inputs.logit_offsets,
        )

    @torch.inference_mode()
    def serve(self) -> None:
        """Computes this rank's part of rank 0's steps, until that is done.

        Raises:
            RankLostError: another rank is gone.
        """
        assert isinstance(self._group, DistributedGroup)
        while lists := self._group.receive():
            tokens, logit_rows, active_lengths, cache_lengths, prompt_lengths, *pages = lists
            kv = self.kv_manager.inputs_of(RaggedBatch(active_lengths, cache_lengths, prompt_lengths, pages))
            tokens_T = torch.tensor(tokens, device=self.session.device)
            hidden_TH = self._forward(tokens_T, kv)
            self.module.compute_logits(hidden_TH[torch.tensor(logit_rows, device=self.session.device)])

    @cached_property
    def _signal_buffers(self) -> list[Tensor]:
        return self._group.signal_buffers or super()._signal_buffers

    def _logits(self, inputs: DecoderInputs, kv: KVCacheInputs[Any]) -> Tensor:
        hidden_TH = self._hidden(inputs, kv)
        if len(inputs.logit_rows) < len(hidden_TH):
            hidden_TH = hidden_TH[inputs.logit_rows]
        return self.module.compute_logits(hidden_TH).float()

    def _hidden(self, inputs: DecoderInputs, kv: KVCacheInputs[Any]) -> Tensor:
        if self.lora_manager is None or inputs.lora_ids is None or inputs.lora_ranks is None:
            return self._forward(inputs.tokens, kv)
        with self.lora_manager.applied(inputs.lora_ids, inputs.lora_ranks, inputs.input_row_offsets):
            return self.module(inputs.tokens, kv)  # never replayed: a recording knows nothing of adapters


def _as_lists(inputs: DecoderInputs, batch: RaggedBatch) -> list[list[int]]:
    lengths = (batch.active_lengths, batch.cache_lengths, batch.prompt_lengths)
    return [inputs.tokens.tolist(), inputs.logit_rows.tolist(), *lengths, *batch.pages]
