"""The typed config of a StableLM model, read from a Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import known_activation, max_rotary_length, max_shareable_length
from transformers import PretrainedConfig

__all__ = ["StableLmConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StableLmConfig(DecoderConfig):
    """StableLM.

    Attributes:
        activation: name of the feed-forward layer's activation function.
        norm_eps: added to the variance in the norms.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        rope_parameters: as in the Hugging Face config, `partial_rotary_factor` included.
        use_qkv_bias: whether queries, keys and values have biases.
        qk_layernorm: whether each head's queries and keys are normalized, by weights of its own.
        use_parallel_residual: whether the feed-forward layer reads what attention reads; else it reads what attention
            has been added to.
    """

    activation: str
    norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]
    use_qkv_bias: bool
    qk_layernorm: bool
    use_parallel_residual: bool

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a Hugging Face config.

        Raises:
            UnsupportedModelError: the activation function is unknown, or the heads do not divide the hidden size.
        """
        if config.hidden_size % config.num_attention_heads:
            raise UnsupportedModelError(
                "the config's heads do not divide its hidden size",
                found=f"hidden_size {config.hidden_size}, {config.num_attention_heads} heads",
                allowed="a number of heads that divides it",
            )
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            max_seq_len=max_rotary_length(config.rope_parameters, config.max_position_embeddings),
            max_shareable_prompt=max_shareable_length(config.rope_parameters, config.max_position_embeddings),
            activation=known_activation(config.hidden_act),
            norm_eps=config.layer_norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=config.rope_parameters,
            use_qkv_bias=config.use_qkv_bias,
            qk_layernorm=config.qk_layernorm,
            use_parallel_residual=config.use_parallel_residual,
        )
