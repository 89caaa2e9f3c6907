"""The typed config of BLOOM, read from a Hugging Face config, and of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import alibi_slopes
from pipezoo_core.weights import GGUFDecoder, GGUFFile
from pipezoo_gpt.heads import head_dim_of

__all__ = ["BloomConfig", "config_from_gguf"]

_TRAINED_LENGTH = 2048  # of all models; not all configs say it


@dataclass(frozen=True, slots=True, kw_only=True)
class BloomConfig(DecoderConfig):
    """BLOOM.

    Attributes:
        layer_norm_eps: added to the variance in the norms.
        adds_to_normalized: whether a layer is added to its normalized input, and not to the input.
        tie_word_embeddings: whether the head's weight is the embedding's.
    """

    layer_norm_eps: float
    adds_to_normalized: bool
    tie_word_embeddings: bool

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `BloomHuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: the heads do not divide the hidden size, or products are to be added up as several
                devices did.
        """
        hidden, heads = config.hidden_size, config.n_head
        head_dim = head_dim_of(hidden, heads)
        if config.slow_but_exact and config.pretraining_tp > 1:
            raise UnsupportedModelError(
                "the config has products added up as several devices did in training, and leaves biases out",
                found=f"slow_but_exact: true, pretraining_tp: {config.pretraining_tp}",
                allowed="slow_but_exact: false",
            )
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_layers=config.n_layer,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim,
            max_seq_len=getattr(config, "seq_length", _TRAINED_LENGTH),
            layer_norm_eps=config.layer_norm_epsilon,
            adds_to_normalized=config.apply_residual_connection_post_layernorm,
            tie_word_embeddings=config.tie_word_embeddings,
        )

    @property
    def attention(self) -> AttentionSpec:
        """Causal attention with ALiBi."""
        return AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            alibi_slopes=alibi_slopes(self.num_heads),
        )


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for. What its metadata leaves open is as in llama.cpp.

    Raises:
        CorruptCheckpointError: a key that every BLOOM file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: the feed-forward layer is not four times as wide as the model.
    """
    decoder = GGUFDecoder(file, "bloom")
    fields = decoder.config(has_rms_norm=False)
    hidden, inner = fields["hidden_size"], fields["intermediate_size"]
    if inner != 4 * hidden:
        raise UnsupportedModelError(
            "the GGUF file has a feed-forward layer that BLOOM has not", found=inner, allowed=4 * hidden
        )
    kept = ("vocab_size", "hidden_size", "tie_word_embeddings", "bos_token_id", "eos_token_id")
    return {
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"],
        **{name: fields[name] for name in kept},
        "n_layer": fields["num_hidden_layers"],
        "n_head": fields["num_attention_heads"],
        "seq_length": fields["max_position_embeddings"],
        "layer_norm_epsilon": decoder.get("attention.layer_norm_epsilon"),
    }
