"""The typed config of a StarCoder2 model, read from a Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.layers import known_activation, max_rotary_length, max_shareable_length
from transformers import PretrainedConfig

__all__ = ["Starcoder2Config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Starcoder2Config(DecoderConfig):
    """StarCoder2.

    Attributes:
        activation: name of the feed-forward layer's activation function.
        norm_eps: added to the variance in the norms.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        rope_parameters: as in the Hugging Face config.
        sliding_window: how many tokens a query sees, itself included; None for all.
        use_bias: whether the linears have one.
    """

    activation: str
    norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]
    sliding_window: int | None
    use_bias: bool

    @property
    def attention(self) -> AttentionSpec:
        """Attention to the tokens of a window."""
        return AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            sliding_window=self.sliding_window,
        )

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a Hugging Face config.

        Raises:
            UnsupportedModelError: the activation function is unknown.
        """
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            max_seq_len=max_rotary_length(config.rope_parameters, config.max_position_embeddings),
            max_shareable_prompt=max_shareable_length(config.rope_parameters, config.max_position_embeddings),
            activation=known_activation(config.hidden_act),
            norm_eps=config.norm_epsilon,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=config.rope_parameters,
            sliding_window=config.sliding_window,
            use_bias=config.use_bias,
        )
