"""The typed config of GPT-J, read from a Hugging Face config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from transformers import PretrainedConfig

from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import known_activation
from pipezoo_gpt.heads import head_dim_of

__all__ = ["GPTJConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTJConfig(DecoderConfig):
    """GPT-J.

    Attributes:
        activation: name of the feed-forward layer's activation function.
        layer_norm_eps: added to the variance in the norms.
        rotary_dim: how many of each head's numbers are rotated, the first ones.
        tie_word_embeddings: whether the head's weight is the embedding's.
    """

    activation: str
    layer_norm_eps: float
    rotary_dim: int
    tie_word_embeddings: bool

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `GPTJHuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: the activation function is unknown, the heads do not divide the hidden size, or what
                is rotated are no pairs of a head's numbers.
        """
        hidden, heads, rotated = config.n_embd, config.n_head, config.rotary_dim
        head_dim = head_dim_of(hidden, heads)
        if rotated is None or rotated % 2 or not 2 <= rotated <= head_dim:
            raise UnsupportedModelError(
                "the config's rotary_dim is no number of pairs of a head",
                found=str(rotated),
                allowed=f"an even number from 2 to {head_dim}",
            )
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=hidden,
            intermediate_size=4 * hidden if config.n_inner is None else config.n_inner,
            num_layers=config.n_layer,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim,
            max_seq_len=config.n_positions,
            activation=known_activation(config.activation_function),
            layer_norm_eps=config.layer_norm_epsilon,
            rotary_dim=rotated,
            tie_word_embeddings=config.tie_word_embeddings,
        )
