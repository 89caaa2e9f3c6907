"""The ready-made `PipelineModel` for decoder-only models: a plugin brings a typed config and an `nn.Module`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from pipezoo_core.attention import AttentionBackends
from pipezoo_core.config import KVCacheConfig, PipelineConfig, ReturnLogits, SupportedEncoding
from pipezoo_core.context import TextContext
from pipezoo_core.decoder.config import DecoderConfig
from pipezoo_core.decoder.estimates import activation_memory, cache_params, part_of
from pipezoo_core.decoder.inputs import DecoderInputs
from pipezoo_core.decoder.module import load_decoder, outline_of
from pipezoo_core.decoder.outlook import StepOutlook
from pipezoo_core.decoder.rank_step import RankStep
from pipezoo_core.decoder.recorded_module import RecordedModule
from pipezoo_core.decoder.replay import step_outlook, why_not_recorded
from pipezoo_core.decoder.spoiled import spoiled_rows
from pipezoo_core.distributed import DistributedGroup, Message
from pipezoo_core.interfaces import (
    AlwaysSignalBuffersMixin,
    KVCacheMixin,
    ModelInputs,
    ModelOutputs,
    PipelineModel,
)
from pipezoo_core.kv_cache import KVCacheInputs, KVCacheParams, PagedKVCacheManager, as_tensors
from pipezoo_core.layers import weights_memory
from pipezoo_core.lora import AdaptedModule, LoRAManager, lora_memory, resolve_lora_config
from pipezoo_core.native import NativeKernels
from pipezoo_core.session import InferenceSession
from pipezoo_core.weights import LazyTensor, Weights, WeightsAdapter, keep_outline, kept_layers, torch_dtype

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["DecoderPipelineModel"]


class DecoderPipelineModel(AlwaysSignalBuffersMixin, PipelineModel[TextContext], KVCacheMixin):
    """Implements all of `PipelineModel` over a plugin's config and module.

    A subclass sets two class attributes and nothing else:

        class LlamaPipelineModel(DecoderPipelineModel):
            config_class = LlamaConfig
            module_class = LlamaForCausalLM

    With several devices it is one of the ranks that compute a model together. Rank 0 is used as on a single device; it
    decides everything and sends each step to the others, who `serve`. The module is the same on all, a part of it.

    Attributes:
        config_class: the plugin's config.
        module_class: the plugin's module, a `DecoderModule`.
    """

    config_class: ClassVar[type[DecoderConfig]]
    module_class: ClassVar[Any]

    _adapted: AdaptedModule | None = None

    @classmethod
    def calculate_max_seq_len(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> int:
        """Returns `max_length`, or where it is not set the longest request the positions reach."""
        return cls.config_class.from_huggingface(huggingface_config).longest_request(pipeline_config.max_length)

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
    ) -> KVCacheParams:
        """Returns the shape of the cache of one device, where devices differ of the one with most heads."""
        config = cls.config_class.from_huggingface(huggingface_config)
        return cache_params(config, n_devices, kv_cache_config, cache_dtype)

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
        return PagedKVCacheManager.estimated_memory_size(
            params, pipeline_config.max_batch_size, length, pipeline_config.max_batch_tokens, available_cache_memory
        )

    @classmethod
    def estimate_weights_size(cls, pipeline_config: PipelineConfig) -> int:
        """Returns the bytes of the weights in the form that they are computed from, padding and scales included."""
        device, encoding = torch.device(pipeline_config.device), pipeline_config.encoding
        kernels = NativeKernels(device, torch_dtype(encoding))
        outline = cls._kept_outline(pipeline_config, pipeline_config.huggingface_config)
        return weights_memory(pipeline_config.linear, outline, device, encoding, kernels)

    @classmethod
    def estimate_activation_memory(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> int:
        """Returns the bytes of a full step's layer, and of a full batch's logits and sampling; `lora` is complete."""
        config = cls.config_class.from_huggingface(huggingface_config)
        return activation_memory(config, cls._kept_outline(pipeline_config, huggingface_config), pipeline_config)

    @classmethod
    def estimate_lora_memory(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> int:
        """Returns the bytes of the slots, of every layer that adapters may change, and of adapters on the host."""
        assert pipeline_config.lora is not None
        outline = cls._outline(pipeline_config, huggingface_config)
        return lora_memory(pipeline_config.lora, outline, torch.device(pipeline_config.device))

    @classmethod
    def why_no_drafts(cls, huggingface_config: PretrainedConfig) -> str | None:
        """Returns why there are no drafts of models with states; of others there are."""
        if not cls.config_class.from_huggingface(huggingface_config).states:
            return None
        return "layers of this model keep a state, which a draft that does not come true would spoil"

    @classmethod
    def step_outlook(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> StepOutlook:
        """Returns what will compute the steps, and whether they will be replayed. Loads nothing."""
        config = cls.config_class.from_huggingface(huggingface_config)
        return step_outlook(cls.module_class, config, pipeline_config)

    @classmethod
    def kept_tensors(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> set[str]:
        """Returns which of `stored_types` stay as they are in the file; the others are dequantized. Loads nothing."""
        kept = kept_layers(cls._outline(pipeline_config, huggingface_config), pipeline_config.stored_types)
        return {name for names in kept.values() for name in names}

    @classmethod
    def _outline(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> nn.Module:
        return outline_of(cls.module_class, cls.config_class.from_huggingface(huggingface_config), pipeline_config)

    @classmethod
    def _kept_outline(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> nn.Module:
        """Returns an outline with what stays as it is in the file in place of weights."""
        outline = cls._outline(pipeline_config, huggingface_config)
        keep_outline(outline, pipeline_config.stored_types)
        return outline

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
        if pipeline_config.lora is not None:
            pipeline_config = pipeline_config.updated(lora=resolve_lora_config(pipeline_config.lora))
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
        self.config = self.config_class.from_huggingface(huggingface_config)
        self._device, self._group = session.device, session.group
        self._kernels = NativeKernels(self._device, self.dtype)
        specs = part_of(self.config, self._group.rank, self._group.size)
        self._backends = AttentionBackends(pipeline_config.attention, specs, self._kernels, kv_cache_config.page_size)
        _ = self.kv_manager  # allocated now, and not in the first step
        self.module = load_decoder(
            self.module_class,
            self.config,
            self._backends,
            weights.adapted(self.adapter, self.huggingface_config),
            pipeline_config=pipeline_config,
            encoding=encoding,
            session=session,
            kernels=self._kernels,
        )
        if pipeline_config.lora is not None:
            assert isinstance(self.module, nn.Module)
            lora = pipeline_config.lora
            self._adapted = AdaptedModule(self.module, lora, device=self._device, dtype=self.dtype, group=self._group)
            if self._group.rank == 0:
                self._lora_manager = LoRAManager(lora, self._adapted, self._adapt)
        self._forward: Callable[[Tensor, KVCacheInputs[Any]], Tensor] = self.module
        if why_not_recorded(pipeline_config, self._backends, self._group.size) is None:
            self._forward = RecordedModule(self.module, self._kernels, pipeline_config.max_batch_tokens)

    def _adapt(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        return dict(tensors) if self.adapter is None else self.adapter(tensors, self.huggingface_config)

    def load_kv_manager(self, session: InferenceSession, available_cache_memory: int | None) -> PagedKVCacheManager:
        """Allocates the cache on the session's device."""
        model_id = self.pipeline_config.model_path
        params = cache_params(self.config, len(self.devices), self.kv_cache_config, self.dtype, model_id=model_id)
        max_chunk, batch_size = self.pipeline_config.max_batch_tokens, self.pipeline_config.max_batch_size
        if available_cache_memory is None:
            available_cache_memory = batch_size * params.bytes_held(self.max_seq_len, max_chunk)
        num_pages = params.divide(available_cache_memory, batch_size, self.max_seq_len, max_chunk)
        own_part = replace(params, groups=self._backends.groups)
        num_slots = params.num_slots_for(batch_size)
        return PagedKVCacheManager(own_part, num_pages, self._backends, session.device, num_slots)

    def prepare_initial_token_inputs(
        self,
        context_batch: Sequence[TextContext],
        kv_cache_inputs: KVCacheInputs[Any] | None = None,
        return_n_logits: int = 1,
    ) -> DecoderInputs:
        """Makes inputs of the contexts' chunks.

        A context that echoes gets the logits of its whole chunk, one with a draft those that verify it, the others as
        many as `return_logits` says: of the whole chunk, of its last `return_n_logits` tokens where it has so many, or
        of its last token.
        """
        assert kv_cache_inputs is not None, "a decoder needs a KV cache"
        num_logits = {ReturnLogits.LAST_TOKEN: 1, ReturnLogits.VARIABLE: return_n_logits, ReturnLogits.ALL: None}
        inputs = DecoderInputs.of_chunks(
            context_batch, kv_cache_inputs, num_logits=num_logits[self.return_logits], device=self._device
        )
        if self._lora_manager is not None:
            inputs.lora_ids, inputs.lora_ranks = self._lora_manager.inputs_of(context_batch)
        return inputs

    def prepare_next_token_inputs(self, next_tokens: Tensor, prev_model_inputs: ModelInputs) -> DecoderInputs:
        """Makes inputs of one new token per request."""
        return DecoderInputs.of_next_tokens(next_tokens, prev_model_inputs)

    @torch.inference_mode()
    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        """Runs the module once and computes the wanted rows of logits, in float32.

        Raises:
            RankLostError: another device's process is gone; the model cannot be used any more.
        """
        assert isinstance(model_inputs, DecoderInputs)
        with _in_own_precision(self._device):
            if isinstance(self._group, DistributedGroup):
                with self._group.step():
                    self._group.send(Message.step, RankStep.of(model_inputs).as_lists())
                    logits = self._logits(model_inputs)
            else:
                logits = self._logits(model_inputs)
        offsets = model_inputs.logit_offsets
        has_more = len(logits) > len(offsets) - 1  # than one row per request
        last = self._rows(logits, offsets[1:] - 1) if has_more else logits
        return ModelOutputs(logits=logits, next_token_logits=last, logit_offsets=offsets)

    @torch.inference_mode()
    def serve(self) -> None:
        """Computes this rank's part of rank 0's steps, until that is done.

        Raises:
            RankLostError: another rank is gone.
        """
        assert isinstance(self._group, DistributedGroup)
        while True:
            message, lists = self._group.receive()
            if message is Message.end:
                return
            if message is Message.fill_slot:
                assert self._adapted is not None
                self._adapted.fill_as_told(lists)
            else:
                self._serve_step(RankStep.from_lists(lists))

    def _serve_step(self, step: RankStep) -> None:
        kv = self.kv_manager.inputs_of(step.batch)
        token_ids, rows = as_tensors((step.tokens, step.logit_rows), self._device)
        hidden_TH = self._hidden(token_ids, kv, step.lora_ids, step.lora_ranks)
        self.module.compute_logits(hidden_TH[rows])

    @cached_property
    def _signal_buffers(self) -> list[Tensor]:
        return self._group.signal_buffers or super()._signal_buffers

    def _logits(self, inputs: DecoderInputs) -> Tensor:
        kv = inputs.kv_cache
        hidden_TH = self._hidden(inputs.tokens, kv, *inputs.loras)
        lengths, rows = kv.batch.active_lengths, inputs.logit_rows
        spoiled_T1 = spoiled_rows(hidden_TH, lengths) if len(hidden_TH) > len(lengths) else None
        if len(rows) < len(hidden_TH):
            hidden_TH = self._rows(hidden_TH, rows)
        if spoiled_T1 is not None:
            hidden_TH = hidden_TH + spoiled_T1[rows]
        logits = self.module.compute_logits(hidden_TH)
        return logits if logits.dtype is torch.float32 else logits.float()

    def _rows(self, x: Tensor, indices: Tensor) -> Tensor:
        return self._kernels.rows(x, indices) if self._kernels.obstacle is None else x[indices]

    def _hidden(
        self, tokens: Tensor, kv: KVCacheInputs[Any], lora_ids: Sequence[int], lora_ranks: Sequence[int]
    ) -> Tensor:
        if not lora_ids:
            return self._forward(tokens, kv)
        assert self._adapted is not None
        with self._adapted.applied(lora_ids, lora_ranks, kv.batch.row_offsets):
            return self.module(tokens, kv)  # never replayed: a recording knows nothing of adapters


def _in_own_precision(device: torch.device) -> AbstractContextManager[None]:
    """Keeps a caller's autocast away: its products would have another dtype than everything else here."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
