"""The typed config of GPT-2, read from a Hugging Face config, and of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import known_activation
from pipezoo_core.weights import GGUFDecoder, GGUFFile
from pipezoo_gpt.heads import head_dim_of

__all__ = ["GPT2Config", "config_from_gguf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GPT2Config(DecoderConfig):
    """GPT-2.

    Attributes:
        activation: name of the feed-forward layer's activation function.
        layer_norm_eps: added to the variance in the norms.
        scales_scores: whether scores are divided by the root of a head's size.
        scales_by_layer: whether they are divided by the layer's number, too, from 1 on.
        tie_word_embeddings: whether the head's weight is the embedding's.
    """

    activation: str
    layer_norm_eps: float
    scales_scores: bool
    scales_by_layer: bool
    tie_word_embeddings: bool

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `GPT2HuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: the activation function is unknown, the heads do not divide the hidden size, or there
                is attention to an encoder.
        """
        hidden, heads = config.n_embd, config.n_head
        head_dim = head_dim_of(hidden, heads)
        if config.add_cross_attention:
            raise UnsupportedModelError("the config has attention to an encoder", found="add_cross_attention: true")
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
            scales_scores=config.scale_attn_weights,
            scales_by_layer=config.scale_attn_by_inverse_layer_idx,
            tie_word_embeddings=config.tie_word_embeddings,
        )

    @property
    def layers(self) -> tuple[AttentionSpec, ...]:
        """Causal attention with a scale that may depend on the layer."""
        scale = self.head_dim**-0.5 if self.scales_scores else 1.0
        return tuple(
            AttentionSpec(
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_dim,
                scale=scale / (i + 1) if self.scales_by_layer else scale,
            )
            for i in range(self.num_layers)
        )


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for. What its metadata leaves open is as in OpenAI's models.

    Raises:
        CorruptCheckpointError: a key that every GPT-2 file has is missing, or a size is no whole number above 0.
    """
    decoder = GGUFDecoder(file, "gpt2")
    config = decoder.config(has_rms_norm=False)
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_positions": config["max_position_embeddings"],
        "n_embd": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_inner": config["intermediate_size"],
        "layer_norm_epsilon": decoder.get("attention.layer_norm_epsilon"),
        **{key: config[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "tie_word_embeddings")},
    }
