"""The typed config of an MPT model, read from a Hugging Face config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.layers import alibi_slopes

__all__ = ["MptConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MptConfig(DecoderConfig):
    """MPT and Replit models with ALiBi, multi-head attention and no biases.

    Attributes:
        layer_norm_epsilon: added to the variance in the norms.
        softmax_scale: factor on q·k.
        clip_qkv: bound on the size of queries, keys and values; None for none.
        alibi_bias_max: exponent of the flattest slope.
    """

    layer_norm_epsilon: float
    softmax_scale: float
    clip_qkv: float | None
    alibi_bias_max: int

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a transformers `MptConfig`; what it may not ask for is refused before, by the plugin's probe."""
        attention, head_dim = config.attn_config, config.d_model // config.n_heads
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=4 * config.d_model,
            num_layers=config.n_layers,
            num_heads=config.n_heads,
            num_kv_heads=config.n_heads,
            head_dim=head_dim,
            max_seq_len=config.max_seq_len,
            layer_norm_epsilon=config.layer_norm_epsilon,
            softmax_scale=head_dim**-0.5 if attention.softmax_scale is None else attention.softmax_scale,
            clip_qkv=attention.clip_qkv,
            alibi_bias_max=attention.alibi_bias_max,
        )

    @property
    def attention(self) -> AttentionSpec:
        """Causal attention with ALiBi."""
        return AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.softmax_scale,
            alibi_slopes=alibi_slopes(self.num_heads, self.alibi_bias_max),
        )
