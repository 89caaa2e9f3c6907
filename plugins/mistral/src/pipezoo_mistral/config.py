"""The typed config of a Mistral model, read from a Hugging Face config or from a GGUF file of Mixtral."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import Routing, known_activation, max_rotary_length, max_shareable_length, rope_of_whole_heads
from pipezoo_core.weights import GGUFDecoder, GGUFFile

__all__ = ["MistralConfig", "config_from_gguf"]

_FULL, _SLIDING = _KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class MistralConfig(DecoderConfig):
    """Mistral 7B v0.1 to v0.3, Nemo, Small, Ministral 3, Mixtral, and the models that share their architecture.

    Attributes:
        activation: name of the feed-forward layer's activation function.
        rms_norm_eps: added to the mean square in the norms.
        sliding_windows: per layer, how many tokens a query sees, itself included; None for all.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        rope_parameters: as in the Hugging Face config.
        routing: how Mixtral chooses the experts of a token; None for no experts.
        query_growth: Ministral 3's `llama_4_scaling_beta`, see `model.QueryScale`; None for none.
    """

    activation: str
    rms_norm_eps: float
    sliding_windows: tuple[int | None, ...]
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]
    routing: Routing | None
    query_growth: float | None

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a config of `pipezoo_mistral.huggingface_config`, or transformers' own.

        Raises:
            UnsupportedModelError: the activation function or a kind of layer is unknown, Ministral 3's queries are not
                scaled, or Mixtral has not as many experts as a token goes to.
        """
        rope = rope_of_whole_heads(config.rope_parameters)
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim or config.hidden_size // config.num_attention_heads,
            max_seq_len=max_rotary_length(rope, config.max_position_embeddings),
            max_shareable_prompt=max_shareable_length(rope, config.max_position_embeddings),
            activation=known_activation(config.hidden_act),
            rms_norm_eps=config.rms_norm_eps,
            sliding_windows=_windows(config),
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=rope,
            routing=_routing(config) if config.model_type == "mixtral" else None,
            query_growth=_query_growth(rope) if config.model_type == "ministral3" else None,
        )

    @property
    def layers(self) -> tuple[AttentionSpec, ...]:
        """Causal attention with grouped heads, each layer over its own sliding window (Jiang et al., 2023)."""
        return tuple(replace(self.attention, sliding_window=window) for window in self.sliding_windows)


def _windows(config: PretrainedConfig) -> tuple[int | None, ...]:
    """Returns each layer's window. Where a config says `layer_types`, they are as transformers' Ministral has them."""
    window, kinds = config.sliding_window, getattr(config, "layer_types", None)
    if kinds is None:
        return (window,) * config.num_hidden_layers
    are_known = len(kinds) == config.num_hidden_layers and all(kind in _KINDS for kind in kinds)
    if not are_known or (window is None and _SLIDING in kinds):
        raise UnsupportedModelError(
            "the config's layer_types are not what its layers can be",
            found=f"{len(kinds)} layers of {sorted({*map(str, kinds)})}, a sliding_window of {window}",
            allowed=f"{config.num_hidden_layers} of {_FULL!r} and, with a window, {_SLIDING!r}",
        )
    return tuple(window if kind == _SLIDING else None for kind in kinds)


def _routing(config: PretrainedConfig) -> Routing:
    return Routing(num_experts=config.num_local_experts, top_k=config.num_experts_per_tok, normalize=True)


def _query_growth(rope: Mapping[str, Any]) -> float:
    growth, length = rope.get("llama_4_scaling_beta"), rope.get("original_max_position_embeddings")
    if isinstance(growth, bool) or not isinstance(growth, int | float) or type(length) is not int or length < 1:
        raise UnsupportedModelError(
            "the config's rope_parameters do not say how Ministral 3 scales its queries",
            found=f"llama_4_scaling_beta {growth}, original_max_position_embeddings {length}",
            allowed="a number, and a whole number above 0",
        )
    return float(growth)


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file of Mixtral stands for, which calls itself llama.

    Raises:
        CorruptCheckpointError: a key that every such file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: the file rotates or scales RoPE in a way that no config.json can say.
    """
    decoder = GGUFDecoder(file, "llama")
    return {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        **decoder.config(),
        "num_local_experts": decoder.size("expert_count"),
        "num_experts_per_tok": decoder.size("expert_used_count"),
    }
