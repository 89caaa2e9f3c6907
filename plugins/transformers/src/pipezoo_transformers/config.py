"""The typed config of any decoder of transformers: what transformers' own config says, and what its layers compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import CheckpointMismatchError, UnsupportedModelError
from pipezoo_transformers.config_key import ConfigKey
from pipezoo_transformers.layers import Layers, layers_of
from pipezoo_transformers.outline import class_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from pipezoo_core.weights import LazyTensor

__all__ = ["TransformersConfig", "read_huggingface_config"]

_LAYER_TYPES = {"attention", "chunked_attention", "full_attention", "sliding_attention"}
_PARTS = ("audio_config", "decoder", "text_config", "vision_config")
_OF_THE_BATCH = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersConfig(DecoderConfig):
    """A decoder that transformers knows.

    Attributes:
        huggingface_config: transformers' own; it is not changed.
        found: what a step goes through.
    """

    huggingface_config: PretrainedConfig
    found: Layers

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads transformers' config, and follows a step of the model through its class.

        Raises:
            UnsupportedModelError: the model computes something that cannot be served; the message says what.
        """
        _check(config)
        max_length = _max_length(config)
        found = _layers(ConfigKey(config), max_length)
        first = found.specs[0]
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=max(found.widest, found.merged_widest),
            num_layers=len(found.specs),
            num_heads=first.num_heads,
            num_kv_heads=first.num_kv_heads,
            head_dim=first.head_dim,
            max_seq_len=max_length,
            huggingface_config=config,
            found=found,
        )

    def check_against(self, tensors: Mapping[str, LazyTensor]) -> None:
        """See `DecoderConfig`. Of layers that are joined to one, a checkpoint has each by itself."""
        DecoderConfig.check_against(replace(self, intermediate_size=self.found.widest), tensors)
        largest = max(size for tensor in tensors.values() for size in tensor.shape)
        num_experts = max((mixture.num_experts for mixture in self.found.mixtures.values()), default=0)
        if num_experts > largest:  # rows of a router
            raise CheckpointMismatchError(wrong_shape=[f"num_experts: at most {largest} -> {num_experts}"])

    @property
    def layers(self) -> tuple[AttentionSpec, ...]:
        """What each attention layer computes."""
        return self.found.specs


def read_huggingface_config(raw: Mapping[str, Any]) -> PretrainedConfig:
    """Builds transformers' config of a config.json, of one with several parts that of the text.

    Raises:
        UnsupportedModelError: transformers has no causal language model of this type, or it is more than one.
    """
    from transformers import CONFIG_MAPPING

    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UnsupportedModelError("transformers does not know this model_type", found=model_type)
    config: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(dict(raw))
    if config.is_encoder_decoder:
        raise UnsupportedModelError("the model has an encoder", found=model_type, allowed="decoders alone")
    model_class = class_of(config)
    if model_class.config_class is not type(config):
        return config.get_text_config()
    if any(getattr(config, name, None) is not None for name in _PARTS):
        raise UnsupportedModelError(
            "the model takes more than text", found=model_class.__name__, cure="Take a checkpoint of its text part."
        )
    return config


def _check(config: PretrainedConfig) -> None:
    if class_of(config)._is_stateful or set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES:
        raise UnsupportedModelError(
            "the model keeps a state of earlier tokens beside their keys and values", found=config.model_type
        )
    if kind := next((kind for kind in _rope_types(config) if kind in _OF_THE_BATCH), None):
        raise UnsupportedModelError(
            "the model's rotation depends on the longest request of a batch", found=f"rope_type {kind!r}"
        )


def _rope_types(config: PretrainedConfig) -> list[object]:
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, Mapping):
        return []
    return [part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, Mapping)]


def _max_length(config: PretrainedConfig) -> int:
    for name in ("max_position_embeddings", "max_seq_len", "seq_length"):
        length = getattr(config, name, None)
        if isinstance(length, int):
            return length
    raise UnsupportedModelError(
        "the model's config does not say how many positions it was trained for", allowed="max_position_embeddings"
    )


@lru_cache(maxsize=8)  # a load asks several times
def _layers(key: ConfigKey, max_length: int) -> Layers:
    return layers_of(key.config, max_length)
