"""The model as a pipeline sees it: prepare inputs, execute, return logits.

Names and signatures are those of MAX's `max.pipelines.lib.interfaces`, with torch's types.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from pipezoo_core.config import KVCacheConfig, PipelineConfig, ReturnLogits, SpeculativeName, SupportedEncoding
from pipezoo_core.context import TextContext
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.interfaces.kv_cache import KVCacheMixin
from pipezoo_core.interfaces.signal_buffers import make_signal_buffers
from pipezoo_core.kv_cache import KVCacheInputs, PagedKVCacheManager
from pipezoo_core.log_probabilities import log_probabilities_of
from pipezoo_core.lora import LoRAManager
from pipezoo_core.request import LogProbabilities
from pipezoo_core.session import InferenceSession
from pipezoo_core.weights import Weights, WeightsAdapter, open_weights, torch_dtype

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["ModelInputs", "ModelOutputs", "PipelineModel", "upper_bounded_default"]

ContextT = TypeVar("ContextT", bound=TextContext)


class ModelInputs:
    """Base of a model's inputs. A subclass sets whatever tensors it needs in its constructor.

    The first two are tokens, int64 [T], and input_row_offsets, int64 [B + 1]; `compute_log_probabilities` relies on it.

    Iterating yields these tensors in the order in which they were set, without the attributes of this base.

    Attributes:
        kv_cache_inputs: the step's view of the KV cache; None for a model without one.
        lora_ids: int64 [B] on the host, the slot of each request's adapter, -1 for none; None where no request has one.
        lora_ranks: int64 [B] on the host, the rank of each of these adapters.
    """

    kv_cache_inputs: KVCacheInputs[Any] | None = None
    lora_ids: Tensor | None = None
    lora_ranks: Tensor | None = None

    def update(self, **kwargs: Any) -> None:
        """Sets attributes that exist already; other names, and values that are None, are passed over."""
        for name, value in kwargs.items():
            if hasattr(self, name) and value is not None:
                setattr(self, name, value)

    def __iter__(self) -> Iterator[Tensor]:
        base = ModelInputs.__annotations__
        return (value for name, value in vars(self).items() if name not in base and isinstance(value, Tensor))


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """What a model computed in one step for B requests. Logits are floating-point; `DecoderPipelineModel` has float32.

    Attributes:
        logits: [rows, V], for a variable number of tokens per request, one request after the other.
        next_token_logits: [B, V], those of each request's last token; a pipeline needs them.
        logit_offsets: int64 [B + 1], where each request's rows begin in `logits`.
    """

    logits: Tensor
    next_token_logits: Tensor | None = None
    logit_offsets: Tensor | None = None


class PipelineModel(abc.ABC, Generic[ContextT]):
    """A model with its weights and, where it is a `KVCacheMixin`, its KV cache.

    Inputs are ragged: the tokens of all requests one after another, and where each request's begin. For requests
    with chunks of 1, 1 and 3 tokens, `tokens` is [t0, t1, t2, t2', t2''] and `input_row_offsets` [0, 1, 2, 5].

    Args:
        pipeline_config: how to run it; complete, nothing is "auto" any more except `attention` and `linear`.
        session: where to run it.
        huggingface_config: what it is.
        encoding: precision of weights and activations.
        devices: the session's devices.
        kv_cache_config: settings of its KV cache.
        weights: the checkpoint.
        adapter: renames the checkpoint's tensors; None where they have the model's own names.
        return_logits: which rows of logits `execute` returns besides the next token's.

    Raises:
        InvalidSettingError: there are to be drafts, and the model does not verify them.
    """

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
        return_logits: ReturnLogits,
    ) -> None:
        has_drafts = pipeline_config.speculative is not SpeculativeName.off
        if has_drafts and (obstacle := self.why_no_drafts(huggingface_config)) is not None:
            raise InvalidSettingError(
                obstacle,
                found=f"speculative={str(pipeline_config.speculative)!r}",
                cure="Load it with speculative='off'.",
            )
        self.pipeline_config = pipeline_config
        self.session = session
        self.huggingface_config = huggingface_config
        self.encoding = encoding
        self.devices = list(devices)
        self.kv_cache_config = kv_cache_config
        self.weights = weights
        self.adapter = adapter
        self.return_logits = return_logits
        self.max_seq_len = self.calculate_max_seq_len(pipeline_config, huggingface_config)

    _lora_manager: LoRAManager | None = None

    @cached_property
    def kv_manager(self) -> PagedKVCacheManager:
        """The KV cache, allocated on first use: while this constructor runs, a subclass is not ready for that.

        Raises:
            AttributeError: the class is no `KVCacheMixin`.
        """
        if not isinstance(self, KVCacheMixin):
            raise AttributeError(f"{type(self).__name__} has no KV cache")
        return self.load_kv_manager(self.session, self.kv_cache_config.kv_cache_memory)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and activations."""
        return torch_dtype(self.encoding)

    @property
    def lora_manager(self) -> LoRAManager | None:
        """The adapters; None where `pipeline_config.lora` is."""
        return self._lora_manager

    @property
    def signal_buffers(self) -> list[Tensor]:
        """A uint8 tensor of 1 MiB per device for collectives, made on first use; none on a single device."""
        return self._signal_buffers if len(self.devices) > 1 else []

    @cached_property
    def _signal_buffers(self) -> list[Tensor]:
        return make_signal_buffers(self.devices)

    @classmethod
    @abc.abstractmethod
    def calculate_max_seq_len(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> int:
        """Returns the most tokens of one request, prompt and answer together.

        Raises:
            ValueError: `pipeline_config.max_length` is above what the model can do.
        """

    @classmethod
    def why_no_drafts(cls, huggingface_config: PretrainedConfig) -> str | None:
        """Returns why a chunk may not end with a draft; None if it may.

        Then `execute` returns the logits of a draft's tokens, and of the token before it.
        """
        del huggingface_config
        return f"{cls.__name__} does not return the logits that verify drafts"

    @abc.abstractmethod
    def prepare_initial_token_inputs(
        self,
        context_batch: Sequence[ContextT],
        kv_cache_inputs: KVCacheInputs[Any] | None = None,
        return_n_logits: int = 1,
    ) -> ModelInputs:
        """Makes inputs of the contexts' chunks; of one with a draft, its tokens and the one before it get logits.

        Args:
            context_batch: each with its chunk set.
            kv_cache_inputs: from `PagedKVCacheManager.fetch` for the same contexts in the same order.
            return_n_logits: how many of a chunk's last tokens get logits, where `return_logits` is VARIABLE.
        """

    @abc.abstractmethod
    def prepare_next_token_inputs(self, next_tokens: Tensor, prev_model_inputs: ModelInputs) -> ModelInputs:
        """Makes inputs of one new token per request, for another step over the same requests.

        Args:
            next_tokens: int64 [B], sampled from the previous step's logits.
            prev_model_inputs: of that step, its `kv_cache_inputs` updated to the new one's.
        """

    @abc.abstractmethod
    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        """Runs the model once. Writes the chunks' keys and values into the KV cache."""

    def compute_log_probabilities(
        self,
        session: InferenceSession,
        model_inputs: ModelInputs,
        model_outputs: ModelOutputs,
        next_tokens: Tensor,
        batch_top_n: list[int],
        batch_echo: list[bool],
    ) -> list[LogProbabilities | None]:
        """Returns the log probabilities of a step, per request.

        While drafts are verified, it is called once more for each of their tokens. The outputs and the lists are then
        of those requests of the step whose draft came true so far, of which none echoes, and B is their number. The
        inputs are those of the whole step still, and are not to be indexed by these requests.

        Args:
            session: where the model runs.
            model_inputs: of the step; its first two tensors are tokens [T] and input_row_offsets, one more than the
                step's requests.
            model_outputs: of the step, with the logits of every fed token of a request that echoes.
            next_tokens: int64 [B], the token that follows each request's chunk.
            batch_top_n: how many of the most likely tokens to list; 0 skips the request.
            batch_echo: whether to include the fed tokens, each but the first of the chunk.

        Returns:
            None for a request that was skipped, else an entry whose last position is that of the next token.
        """
        del session
        tokens, row_offsets = list(model_inputs)[:2]
        offsets = row_offsets.tolist()
        assert model_outputs.logit_offsets is not None
        assert model_outputs.next_token_logits is not None
        logit_offsets = model_outputs.logit_offsets.tolist()
        results: list[LogProbabilities | None] = []
        for i, (top_n, echo) in enumerate(zip(batch_top_n, batch_echo, strict=True)):
            if not top_n:
                results.append(None)
                continue
            logits, targets = model_outputs.next_token_logits[i : i + 1], next_tokens[i : i + 1]
            if echo:
                logits = model_outputs.logits[logit_offsets[i] : logit_offsets[i + 1]]
                targets = torch.cat((tokens[offsets[i] + 1 : offsets[i + 1]], targets))
            results.append(log_probabilities_of(logits, targets, top_n))
        return results

    @classmethod
    def estimate_weights_size(cls, pipeline_config: PipelineConfig) -> int:
        """Returns the bytes the weights take on each device in the run's precision, by default all those of the files.

        Reads the files' headers. A model that several devices compute together counts one device's part.
        """
        tensors = open_weights(pipeline_config.weight_paths).values()
        return sum(tensor.num_elements for tensor in tensors) * torch_dtype(pipeline_config.encoding).itemsize

    @classmethod
    def estimate_activation_memory(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> int:
        """Returns the bytes a step needs on each device besides weights and KV cache; 0 where a model does not say.

        `pipeline_config.lora` is complete, where there is one: see `lora.resolve_lora_config`.
        """
        del pipeline_config, huggingface_config
        return 0

    @classmethod
    def estimate_lora_memory(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> int:
        """Returns the bytes of the slots of `pipeline_config.lora`, which is complete.

        Raises:
            InvalidSettingError: the model's layers take no adapters.
        """
        del pipeline_config, huggingface_config
        raise InvalidSettingError(f"{cls.__name__} takes no LoRA adapters", cure="Load it without lora settings.")

    @classmethod
    def infer_optimal_batch_size(
        cls,
        pipeline_config: PipelineConfig,
        available_cache_memory: int,
        huggingface_config: PretrainedConfig,
        devices: Sequence[torch.device],
        kv_cache_config: KVCacheConfig,
        cache_dtype: torch.dtype,
    ) -> int:
        """Returns how many requests of the greatest length fit the cache at once; without a cache the setting.

        A name of MAX's, whose pipelines ask for it; here `max_batch_size` is a setting.
        """
        if not issubclass(cls, KVCacheMixin):
            return pipeline_config.max_batch_size
        params = cls.get_kv_params(huggingface_config, len(devices), kv_cache_config, cache_dtype)
        length = cls.calculate_max_seq_len(pipeline_config, huggingface_config)
        return PagedKVCacheManager.infer_optimal_batch_size(
            params, length, pipeline_config.max_batch_tokens, available_cache_memory
        )


def upper_bounded_default(upper_bound: int, default: int | None) -> int:
    """Returns `default`, or the bound where it is None. A name of MAX's, for a model's `calculate_max_seq_len`.

    Raises:
        ValueError: `default` is above the bound.
    """
    if default is None:
        return upper_bound
    if default > upper_bound:
        raise ValueError(f"{default} is above the upper bound of {upper_bound}")
    return default
