"""One tiny config of a plugin: its reference with random weights, and the plugin's model of the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.attention import AttentionSpec
from pipezoo_core.config import KVCacheConfig, PipelineConfig, ReturnLogits
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.decoder.module import outline_of
from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.interfaces import PipelineModel
from pipezoo_core.memory import plan_memory
from pipezoo_core.pipeline import TextGenerationPipeline
from pipezoo_core.recurrence import StateSpec
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.session import InferenceSession
from pipezoo_core.testing.failures import ConformanceError
from pipezoo_core.testing.reference import reference_logits, save_reference, weights_of_text
from pipezoo_core.tokenizer import TextTokenizer
from pipezoo_core.weights import Weights, find_safetensors, open_gguf, open_safetensors

__all__ = ["Subject"]

_CPU = torch.device("cpu")
_CACHE = KVCacheConfig(page_size=8, kv_cache_memory=2**23)
_LENGTHS = (6, 60, 1, 97)
_MIN_LENGTH = 32  # of requests, below which nothing is left to see


class Subject:
    """What the checks look at.

    Args:
        name: of the config.
        config: what its config.json says.
        architecture: of the plugin, serving it.
        reference: with random weights.
        folder: an empty one, for the checkpoint and what checks write.
        write_gguf: writes the reference as a GGUF file; None for the kit's own writer.

    Attributes:
        checkpoint: the folder with config.json and safetensors.
        huggingface_config: what the plugin makes of config.json.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        architecture: SupportedArchitecture,
        reference: nn.Module,
        folder: Path,
        write_gguf: Callable[[nn.Module, Path], None] | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.architecture = architecture
        self.reference = reference
        self.folder = folder
        self._write_gguf = write_gguf
        self.checkpoint = folder / "checkpoint"
        self.checkpoint.mkdir(parents=True)
        save_reference(reference, config, self.checkpoint)
        self._expected: dict[tuple[int, ...], Tensor] = {}

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        """The config.json of the checkpoint."""
        raw: dict[str, Any] = json.loads((self.checkpoint / "config.json").read_text("utf-8"))
        return raw

    @cached_property
    def huggingface_config(self) -> PretrainedConfig:
        """What the plugin makes of config.json; as in a load, no head is tied where the file has another one.

        Raises:
            ConformanceError: the plugin refuses it, or cannot read it.
        """
        refusal = self.architecture.probe(self.raw_config)
        if refusal is not None:
            raise ConformanceError(f"the plugin refuses config {self.name!r}", found=refusal)
        config = self.architecture.huggingface_config(dict(self.raw_config))
        if getattr(config, "tie_word_embeddings", False) and _has_a_head_of_its_own(self.reference):
            config.tie_word_embeddings = False
        return config

    @property
    def vocab_size(self) -> int:
        """Tokens that the model knows."""
        size: int = self.huggingface_config.get_text_config().vocab_size
        return size

    @cached_property
    def max_length(self) -> int:
        """Most tokens of a request.

        Raises:
            ConformanceError: it is too short for prompts that show anything.
        """
        model, config = self.architecture.pipeline_model, PipelineConfig(model_path=self.name)
        length = model.calculate_max_seq_len(config, self.huggingface_config)
        if length < _MIN_LENGTH:
            raise ConformanceError(
                f"the requests of config {self.name!r} are too short to show anything",
                found=f"{length} tokens",
                allowed=f"{_MIN_LENGTH} at least, better 256",
                cure="Raise max_position_embeddings, or what the config calls it, in the test's configs.",
            )
        return length

    @cached_property
    def layers(self) -> tuple[AttentionSpec | StateSpec | None, ...]:
        """What the plugin's config says of each layer; nothing of a model that is no decoder of core's."""
        model = self.architecture.pipeline_model
        if not issubclass(model, DecoderPipelineModel):
            return ()
        return model.config_class.from_huggingface(self.huggingface_config).layers

    @property
    def prompts(self) -> list[list[int]]:
        """Prompts of several lengths, which have no tokens in common at their beginnings."""
        return [
            [(5 * number + 7 * i + i * i) % self.vocab_size for i in range(min(length, self.max_length - 8))]
            for number, length in enumerate(_LENGTHS)
        ]

    def expected(self, tokens: Sequence[int]) -> Tensor:
        """Returns the reference's logits [S, V]."""
        key = tuple(tokens)
        if key not in self._expected:
            self._expected[key] = reference_logits(self.reference, list(tokens))
        return self._expected[key]

    @cached_property
    def of_text(self) -> set[int]:
        """The addresses of the reference's parameters that logits of text depend on."""
        return weights_of_text(self.reference, self.prompts[0])

    @property
    def weights(self) -> Weights:
        """The checkpoint's tensors."""
        return open_safetensors(find_safetensors(self.checkpoint))

    def load(
        self,
        *,
        checkpoint: Path | None = None,
        group: TensorParallelGroup | None = None,
        return_logits: ReturnLogits = ReturnLogits.ALL,
        **settings: Any,
    ) -> PipelineModel[Any]:
        """Loads the plugin's model.

        Args:
            checkpoint: a folder with other weights than the checkpoint's; None for these.
            group: of ranks, of which this one's part is loaded.
            return_logits: of which tokens.
            settings: of `PipelineConfig`, by default float32 and small pages.
        """
        config = self._pipeline_config(checkpoint or self.checkpoint, settings)
        return self._open(config, InferenceSession([_CPU] * (group.size if group else 1), group), return_logits)

    @cached_property
    def gguf_file(self) -> Path | None:
        """The reference as the author's GGUF file; None where the author writes none."""
        if self._write_gguf is None:
            return None
        path = self.folder / "model.gguf"
        self._write_gguf(self.reference, path)
        return path

    def huggingface_config_of(self, path: Path) -> PretrainedConfig:
        """Returns what the plugin makes of a GGUF file's metadata."""
        assert self.architecture.config_from_gguf is not None
        return self.architecture.huggingface_config(self.architecture.config_from_gguf(open_gguf(path)))

    def load_gguf(self, path: Path) -> PipelineModel[Any]:
        """Loads the plugin's model of a GGUF file."""
        read = self.huggingface_config_of(path)
        config = PipelineConfig(model_path=str(path), weight_paths=(path,), huggingface_config=read, kv_cache=_CACHE)
        return self._open(config, InferenceSession([_CPU]), ReturnLogits.ALL, open_gguf(path).weights)

    @cached_property
    def outline(self) -> nn.Module:
        """An outline of the plugin's module: shapes without numbers; an empty one of what is no decoder of core's."""
        model = self.architecture.pipeline_model
        if not issubclass(model, DecoderPipelineModel):
            return nn.Module()
        config = model.config_class.from_huggingface(self.huggingface_config)
        return outline_of(model.module_class, config, PipelineConfig(model_path=self.name))

    def planned(self, **settings: Any) -> PipelineConfig:
        """Returns the complete config of a run, as a load makes it; takes settings of `PipelineConfig`."""
        asked = self._pipeline_config(self.checkpoint, settings)
        return plan_memory(self.architecture.pipeline_model, asked, self.huggingface_config, [_CPU])[0]

    def pipeline(self, **settings: Any) -> TextGenerationPipeline:
        """Loads the plugin's model with a pipeline around it; takes settings of `PipelineConfig`."""
        asked = self._pipeline_config(self.checkpoint, settings)
        config, memory = plan_memory(self.architecture.pipeline_model, asked, self.huggingface_config, [_CPU])
        model = self._open(config, InferenceSession([_CPU]), ReturnLogits.VARIABLE)
        assert config.max_length is not None
        tokenizer = TextTokenizer(
            word_tokenizer(self.vocab_size),
            max_length=config.max_length,
            sampling_params=SamplingParams(temperature=0.0, ignore_eos=True),
            eos_token_ids=(),
            vocab_size=self.vocab_size,
        )
        return TextGenerationPipeline(config, [model], tokenizer, memory)

    def _pipeline_config(self, checkpoint: Path, settings: Mapping[str, Any]) -> PipelineConfig:
        values = {"kv_cache": _CACHE, **settings}
        return PipelineConfig(
            model_path=str(checkpoint),
            weight_paths=find_safetensors(checkpoint),
            huggingface_config=self.huggingface_config,
            **values,
        )

    def _open(
        self,
        config: PipelineConfig,
        session: InferenceSession,
        return_logits: ReturnLogits,
        weights: Weights | None = None,
    ) -> PipelineModel[Any]:
        weights = open_safetensors(config.weight_paths) if weights is None else weights
        return self.architecture.pipeline_model(
            pipeline_config=config,
            session=session,
            huggingface_config=config.huggingface_config,
            encoding=config.encoding,
            devices=session.devices,
            kv_cache_config=config.kv_cache,
            weights=weights,
            adapter=self.architecture.weight_adapters[weights.format],
            return_logits=return_logits,
        )


def _has_a_head_of_its_own(reference: nn.Module) -> bool:
    """Whether it is known to have one, whatever its config says."""
    names = ("get_input_embeddings", "get_output_embeddings")
    embedding, head = (getattr(reference, name, lambda: None)() for name in names)
    return embedding is not None and head is not None and head.weight is not embedding.weight


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of so many words, each a number."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {str(token): token for token in range(vocab_size)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")))
