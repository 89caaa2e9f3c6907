"""The typed config of an MPT model, read from a Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from transformers import MptConfig as HuggingFaceMptConfig
from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.layers import alibi_slopes

__all__ = ["MptConfig", "read_huggingface_config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MptConfig(DecoderConfig):
    """MPT and Replit models with ALiBi and a tied head.

    Attributes:
        layer_norm_epsilon: added to the variance in the norms.
        bias: whether all linear layers and norms have one.
        softmax_scale: factor on q·k.
        clip_qkv: bound on the size of queries, keys and values; None for none.
        alibi_bias_max: exponent of the flattest slope.
        logit_scale: factor on the logits; None for none.
    """

    layer_norm_epsilon: float
    bias: bool
    softmax_scale: float
    clip_qkv: float | None
    alibi_bias_max: int
    logit_scale: float | None

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a transformers `MptConfig`; what it may not ask for is refused before, by the plugin's probe."""
        attention, head_dim = config.attn_config, config.d_model // config.n_heads
        inverse_root = config.logit_scale == "inv_sqrt_d_model"
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.expansion_ratio * config.d_model,
            num_layers=config.n_layers,
            num_heads=config.n_heads,
            num_kv_heads=getattr(config, "num_key_value_heads", config.n_heads),
            head_dim=head_dim,
            max_seq_len=config.max_seq_len,
            layer_norm_epsilon=config.layer_norm_epsilon,
            bias=not config.no_bias,
            softmax_scale=head_dim**-0.5 if attention.softmax_scale is None else attention.softmax_scale,
            clip_qkv=attention.clip_qkv,
            alibi_bias_max=attention.alibi_bias_max,
            logit_scale=config.d_model**-0.5 if inverse_root else config.logit_scale,
        )

    @property
    def attention(self) -> AttentionSpec:
        """Causal attention with ALiBi, and with grouped heads in Replit's models."""
        return AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.softmax_scale,
            alibi_slopes=alibi_slopes(self.num_heads, self.alibi_bias_max),
        )


def read_huggingface_config(raw: dict[str, Any]) -> HuggingFaceMptConfig:
    """Builds transformers' `MptConfig` of a config.json that MPT's own code (llm-foundry) may have written.

    That code knows more kinds of attention than transformers, and does not care whether a number is written as 6 or
    as 6.0, which transformers does (the clip_qkv of MPT-30B is one). Where key/value heads are shared, the result's
    `num_key_value_heads` says how many there are.

    Raises:
        StrictDataclassError: a value is of a wrong type.
    """
    attention = raw.get("attn_config") or {}
    kept = {name: attention[name] for name in ("alibi_bias_max", "clip_qkv", "softmax_scale") if name in attention}
    config = {**raw, "attn_config": _floats(kept, "clip_qkv", "softmax_scale")}
    num_kv_heads = 1 if attention.get("attn_type") == "multiquery_attention" else attention.get("kv_n_heads")
    if num_kv_heads is not None:
        config["num_key_value_heads"] = num_kv_heads
    read: HuggingFaceMptConfig = HuggingFaceMptConfig.from_dict(_floats(config, "logit_scale"))
    return read


def _floats(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: float(value) if name in names and type(value) is int else value for name, value in values.items()}
