"""The ready-made `PipelineModel` for decoder-only models: a plugin brings a typed config and an `nn.Module`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from pipezoo_core.attention import AttentionBackend, NativeAttention, select_backend
from pipezoo_core.config import KVCacheConfig, LoRAConfig, PipelineConfig, ReturnLogits, SupportedEncoding
from pipezoo_core.context import TextContext
from pipezoo_core.decoder.estimates import DecoderEstimates
from pipezoo_core.decoder.inputs import DecoderInputs
from pipezoo_core.decoder.recorded_module import RecordedModule
from pipezoo_core.distributed import DistributedGroup, Message
from pipezoo_core.interfaces import AlwaysSignalBuffersMixin, ModelInputs, ModelOutputs
from pipezoo_core.kv_cache import KVCacheInputs, PagedKVCacheManager, RaggedBatch, as_tensors
from pipezoo_core.layers import use_linear_backend
from pipezoo_core.lora import AdaptedModule, LoRAManager, resolve_lora_config
from pipezoo_core.native import NativeKernels
from pipezoo_core.session import InferenceSession
from pipezoo_core.weights import LazyTensor, Weights, WeightsAdapter, load_module, torch_dtype

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["DecoderModule", "DecoderPipelineModel"]


class DecoderModule(Protocol):
    """What `DecoderPipelineModel` needs of a plugin's module.

    Built as `Module(config, backend)` on torch's meta device; what else it keeps to is in docs/writing-a-plugin.md.
    """

    def __call__(self, tokens: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, hidden_size]."""
        ...

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [rows, hidden_size] to logits [rows, vocab_size]."""
        ...


class DecoderPipelineModel(AlwaysSignalBuffersMixin, DecoderEstimates):
    """Implements all of `PipelineModel` over a plugin's config and module.

    A subclass sets two class attributes and nothing else:

        class LlamaPipelineModel(DecoderPipelineModel):
            config_class = LlamaConfig
            module_class = LlamaForCausalLM

    With several devices it is one of the ranks that compute a model together. Rank 0 is used as on a single device; it
    decides everything and sends each step to the others, who `serve`. The module is the same on all, a part of it.
    """

    _adapted: AdaptedModule | None = None

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
        self._device = session.device
        self._kernels = NativeKernels(self._device, torch_dtype(encoding))
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
        if pipeline_config.lora is not None:
            self._load_adapters(pipeline_config.lora)
        self._forward: Callable[[Tensor, KVCacheInputs[Any]], Tensor] = self.module
        is_recordable = isinstance(self._backend, NativeAttention) and self._group.size == 1
        if is_recordable and not pipeline_config.enforce_eager:
            self._forward = RecordedModule(self.module, self._kernels, pipeline_config.max_batch_tokens)

    def _load_module(self) -> DecoderModule:
        with torch.device("meta"):
            module: nn.Module = self.module_class(self.config, self._backend)
        load_module(
            module,
            self._adapt(self.weights),
            self._device,
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
            self._device,
            self.encoding,
            self._kernels,
            fuse=self.pipeline_config.lora is None,  # an adapter may change a layer alone
        )

    def _adapt(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        return dict(tensors) if self.adapter is None else self.adapter(tensors, self.huggingface_config)

    def _load_adapters(self, lora: LoRAConfig) -> None:
        """Gives the module slots for adapters, and on rank 0 loads these."""
        assert isinstance(self.module, nn.Module)
        config = resolve_lora_config(lora)
        self._adapted = AdaptedModule(self.module, config, device=self._device, dtype=self.dtype, group=self._group)
        if self._group.rank == 0:
            self._lora_manager = LoRAManager(config, self._adapted, self._adapt)

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
        token_ids, logit_rows, logit_offsets = as_tensors((tokens, rows, offsets), self._device)
        inputs = DecoderInputs(
            tokens=token_ids,
            input_row_offsets=kv_cache_inputs.input_row_offsets,
            logit_rows=logit_rows,
            logit_offsets=logit_offsets,
            kv_cache_inputs=kv_cache_inputs,
        )
        if self._lora_manager is not None:
            inputs.lora_ids, inputs.lora_ranks = self._lora_manager.inputs_of(context_batch)
        return inputs

    def prepare_next_token_inputs(self, next_tokens: Tensor, prev_model_inputs: ModelInputs) -> DecoderInputs:
        """Makes inputs of one new token per request."""
        assert prev_model_inputs.kv_cache_inputs is not None
        rows = torch.arange(len(next_tokens) + 1, dtype=torch.int64, device=next_tokens.device)
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
        with _in_own_precision(self._device):
            if isinstance(self._group, DistributedGroup):
                with self._group.step():
                    self._group.send(Message.step, _as_lists(model_inputs, model_inputs.kv_cache_inputs.batch))
                    logits = self._logits(model_inputs, model_inputs.kv_cache_inputs)
            else:
                logits = self._logits(model_inputs, model_inputs.kv_cache_inputs)
        offsets = model_inputs.logit_offsets
        has_more = len(logits) > len(offsets) - 1  # than one row per request
        return ModelOutputs(
            logits=logits,
            next_token_logits=self._rows(logits, offsets[1:] - 1) if has_more else logits,
            logit_offsets=offsets,
        )

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
                self._step_as_told(lists)

    def _step_as_told(self, lists: Sequence[list[int]]) -> None:
        tokens, logit_rows, active_lengths, cache_lengths, prompt_lengths, lora_ids, lora_ranks, *pages = lists
        kv = self.kv_manager.inputs_of(RaggedBatch(active_lengths, cache_lengths, prompt_lengths, pages))
        token_ids, rows = as_tensors((tokens, logit_rows), self._device)
        hidden_TH = self._hidden(token_ids, kv, lora_ids, lora_ranks)
        self.module.compute_logits(hidden_TH[rows])

    @cached_property
    def _signal_buffers(self) -> list[Tensor]:
        return self._group.signal_buffers or super()._signal_buffers

    def _logits(self, inputs: DecoderInputs, kv: KVCacheInputs[Any]) -> Tensor:
        hidden_TH = self._hidden(inputs.tokens, kv, *_loras(inputs))
        lengths, rows = kv.batch.active_lengths, inputs.logit_rows
        spoiled_T1 = _spoiled(hidden_TH, lengths) if len(hidden_TH) > len(lengths) else None
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


def _spoiled(hidden_TH: Tensor, lengths: Sequence[int]) -> Tensor:
    """Returns for each row 0, or NaN where a hidden state of its request is not finite in this step, [T, 1].

    Later rows may not show it: in pages there is nothing of what is not finite. With lengths 2 and 1 and NaN in row 0,
    rows 0 and 1 have NaN.
    """
    greatest_T1 = torch.linalg.vector_norm(hidden_TH, torch.inf, -1, keepdim=True)
    sums = [part.sum().expand(len(part), 1) for part in (greatest_T1 - greatest_T1).split(list(lengths))]
    return torch.cat(sums)


def _as_lists(inputs: DecoderInputs, batch: RaggedBatch) -> list[list[int]]:
    lengths = (batch.active_lengths, batch.cache_lengths, batch.prompt_lengths)
    return [inputs.tokens.tolist(), inputs.logit_rows.tolist(), *lengths, *_loras(inputs), *batch.pages]


def _loras(inputs: DecoderInputs) -> tuple[list[int], list[int]]:
    """Returns each request's slot and rank; nothing where no request has an adapter."""
    if inputs.lora_ids is None or inputs.lora_ranks is None:
        return [], []
    return inputs.lora_ids.tolist(), inputs.lora_ranks.tolist()
