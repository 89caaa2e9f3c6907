"""The typed config of OPT, read from a Hugging Face config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from transformers import PretrainedConfig

from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import known_activation
from pipezoo_gpt.heads import head_dim_of

__all__ = ["OPTConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OPTConfig(DecoderConfig):
    """OPT.

    Attributes:
        embedding_size: numbers per row of the embedding and of the head.
        activation: name of the feed-forward layer's activation function.
        normalizes_inputs: whether a layer normalizes what it reads, and not the sum that it returns.
        has_final_norm: whether the last layer's numbers are normalized.
        has_biases: whether the linear layers have one.
        has_norm_weights: whether the norms have a weight and a bias.
        tie_word_embeddings: whether the head's weight is the embedding's.
    """

    embedding_size: int
    activation: str
    normalizes_inputs: bool
    has_final_norm: bool
    has_biases: bool
    has_norm_weights: bool
    tie_word_embeddings: bool

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads an `OPTHuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: the activation function is unknown, the heads do not divide the hidden size, or the
                embedding has no numbers.
        """
        hidden, heads = config.hidden_size, config.num_attention_heads
        head_dim = head_dim_of(hidden, heads)
        embedding_size = hidden if config.word_embed_proj_dim is None else config.word_embed_proj_dim
        if embedding_size < 1:
            raise UnsupportedModelError(
                "the config's word_embed_proj_dim is not positive", found=embedding_size, allowed="at least 1"
            )
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=hidden,
            intermediate_size=config.ffn_dim,
            num_layers=config.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim,
            max_seq_len=config.max_position_embeddings,
            embedding_size=embedding_size,
            activation=known_activation(config.activation_function),
            normalizes_inputs=config.do_layer_norm_before,
            has_final_norm=config.do_layer_norm_before and not config._remove_final_layer_norm,
            has_biases=config.enable_bias,
            has_norm_weights=config.layer_norm_elementwise_affine,
            tie_word_embeddings=config.tie_word_embeddings,
        )
