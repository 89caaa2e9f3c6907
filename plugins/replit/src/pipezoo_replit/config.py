"""The typed config of MPT and Replit models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.layers import alibi_slopes
from pipezoo_replit.huggingface_config import ReplitLMConfig

__all__ = ["MptConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MptConfig(DecoderConfig):
    """MPT and Replit models.

    Attributes:
        layer_norm_epsilon: added to the variance in the norms.
        bias: whether all linear layers and norms have one.
        softmax_scale: factor on q·k.
        clip_qkv: bound on the size of queries, keys and values; None for none.
        qk_ln: whether queries and keys are normalized.
        alibi_slopes: one per query head; None for no ALiBi.
        learned_positions: whether a vector per position is added to the embedding.
        tie_word_embeddings: whether the head's weight is the embedding's.
        logit_scale: factor on the logits; None for none.
    """

    layer_norm_epsilon: float
    bias: bool
    softmax_scale: float
    clip_qkv: float | None
    qk_ln: bool
    alibi_slopes: tuple[float, ...] | None
    learned_positions: bool
    tie_word_embeddings: bool
    logit_scale: float | None

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads our own `MptHuggingFaceConfig`; what it may not ask for is refused before, by the plugin's probe."""
        head_dim = config.d_model // config.n_heads
        num_kv_heads = config.n_heads if config.kv_n_heads is None else config.kv_n_heads
        inverse_root = config.logit_scale == "inv_sqrt_d_model"
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=int(config.expansion_ratio * config.d_model),
            num_layers=config.n_layers,
            num_heads=config.n_heads,
            num_kv_heads=1 if config.attn_type == "multiquery_attention" else num_kv_heads,
            head_dim=head_dim,
            max_seq_len=config.max_seq_len,
            layer_norm_epsilon=config.layer_norm_epsilon,
            bias=not config.no_bias,
            softmax_scale=head_dim**-0.5 if config.softmax_scale is None else config.softmax_scale,
            clip_qkv=config.clip_qkv or None,
            qk_ln=config.qk_ln,
            alibi_slopes=_slopes(config) if config.alibi else None,
            learned_positions=config.learned_pos_emb and not config.alibi,
            tie_word_embeddings=config.tie_word_embeddings,
            logit_scale=config.d_model**-0.5 if inverse_root else config.logit_scale,
        )

    @property
    def attention(self) -> AttentionSpec:
        """Causal attention, with ALiBi and grouped heads where the model has them."""
        return AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.softmax_scale,
            alibi_slopes=self.alibi_slopes,
        )


def _slopes(config: Any) -> tuple[float, ...]:
    """Replit's first code has one sequence for any number of heads; the two differ where that is no power of two."""
    if isinstance(config, ReplitLMConfig):
        return tuple(2.0 ** (-config.alibi_bias_max * i / config.n_heads) for i in range(1, config.n_heads + 1))
    return alibi_slopes(config.n_heads, config.alibi_bias_max)
