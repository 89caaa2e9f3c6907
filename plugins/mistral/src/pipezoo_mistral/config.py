"""The typed config of a Mistral model, read from a Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import ACTIVATIONS, max_rotary_length, max_shareable_length

__all__ = ["MistralConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MistralConfig(DecoderConfig):
    """Mistral 7B v0.1 to v0.3, Nemo, Ministral 3, and the models that share their architecture.

    Attributes:
        activation: name of the feed-forward layer's activation function.
        rms_norm_eps: added to the mean square in the norms.
        sliding_window: how many tokens a query sees, itself included; None for all.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        rope_parameters: as in the Hugging Face config.
        query_growth: Ministral 3's `llama_4_scaling_beta`, see `model.QueryScale`; None for none.
    """

    activation: str
    rms_norm_eps: float
    sliding_window: int | None
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]
    query_growth: float | None

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `MistralHuggingFaceConfig`, a `Ministral3HuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: the activation function is unknown, or Ministral 3's queries are not scaled.
        """
        if config.hidden_act not in ACTIVATIONS:
            raise UnsupportedModelError(
                "the activation function is unknown", found=config.hidden_act, allowed=sorted(ACTIVATIONS)
            )
        rope = config.rope_parameters
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_seq_len=max_rotary_length(rope, config.max_position_embeddings),
            max_shareable_prompt=max_shareable_length(rope, config.max_position_embeddings),
            activation=config.hidden_act,
            rms_norm_eps=config.rms_norm_eps,
            sliding_window=config.sliding_window,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=rope,
            query_growth=_query_growth(rope) if config.model_type == "ministral3" else None,
        )

    @property
    def attention(self) -> AttentionSpec:
        """Causal attention with grouped heads over a sliding window (Jiang et al., 2023)."""
        return AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            sliding_window=self.sliding_window,
        )


def _query_growth(rope: Mapping[str, Any]) -> float:
    growth, length = rope.get("llama_4_scaling_beta"), rope.get("original_max_position_embeddings")
    if not isinstance(growth, int | float) or not isinstance(length, int) or length < 1:
        raise UnsupportedModelError(
            "the config's rope_parameters do not say how Ministral 3 scales its queries",
            found=f"llama_4_scaling_beta {growth}, original_max_position_embeddings {length}",
            allowed="a number, and a whole number above 0",
        )
    return float(growth)
