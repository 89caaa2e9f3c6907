"""The config.json of MPT and Replit models as classes of our own: transformers knows only a part of MPT's settings.

Two spellings are read. MPT's keeps the settings of attention in a part of their own, `attn_config`; Replit's first
model (`model_type` `replit_lm`) has everything side by side, some of it under other names.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["MptHuggingFaceConfig", "ReplitLMConfig", "in_one_spelling", "read_huggingface_config"]

_PARTS = {
    "attn_config": (
        "alibi",
        "alibi_bias_max",
        "attn_logit_softcapping",
        "attn_type",
        "attn_uses_sequence_id",
        "clip_qkv",
        "kv_n_heads",
        "prefix_lm",
        "qk_gn",
        "qk_ln",
        "rope",
        "sliding_window_size",
        "softmax_scale",
    ),
    "ffn_config": ("ffn_act_fn", "ffn_hidden_size", "ffn_type"),
}
_NAMES = {
    "attn_clip_qkv": "clip_qkv",
    "attn_qk_ln": "qk_ln",
    "mlp_ratio": "expansion_ratio",
    "norm_eps": "layer_norm_epsilon",  # of later MPT code; the other is transformers'
}
_MAX_SIZE = 2**20  # there is a slope for each head


@strict
class MptHuggingFaceConfig(PretrainedConfig):
    """What a config.json of MPT says, without its parts. What it leaves out is as in transformers' `MptConfig`.

    Attributes:
        d_model: numbers per token between layers.
        expansion_ratio: `d_model` times it are the numbers per token inside the feed-forward layer.
        kv_n_heads: key/value heads; None for as many as query heads, or one with multi-query attention.
        alibi: whether attention has linear biases; then there are no learned positions.
        learned_pos_emb: whether there are learned positions where there is no ALiBi.
        alibi_bias_max: exponent of the flattest slope.
        qk_ln: whether queries and keys are normalized, all heads together.
        clip_qkv: bound on the size of queries, keys and values; None or 0 for none.
        softmax_scale: factor on q·k; None for the inverse root of the head's size.
        logit_scale: factor on the logits, or `inv_sqrt_d_model`; None for none.
    """

    model_type = "mpt"

    d_model: int = 2048
    n_heads: int = 16
    n_layers: int = 24
    expansion_ratio: int | float = 4
    max_seq_len: int = 2048
    vocab_size: int = 50368
    layer_norm_epsilon: float = 1e-5
    no_bias: bool = True
    logit_scale: float | int | str | None = None
    tie_word_embeddings: bool = True
    learned_pos_emb: bool = True
    attn_type: str = "multihead_attention"
    kv_n_heads: int | None = None
    alibi: bool = True
    alibi_bias_max: int = 8
    qk_ln: bool = False
    clip_qkv: float | int | None = None
    softmax_scale: float | int | None = None
    eos_token_id: int | list[int] | None = None

    def validate_sizes(self) -> None:
        """Raises ValueError where a size is not a whole number of what it is made of."""
        if not 1 <= self.n_heads <= self.d_model <= _MAX_SIZE or self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is no multiple of n_heads {self.n_heads}")
        if self.expansion_ratio * self.d_model % 1:
            raise ValueError(f"expansion_ratio {self.expansion_ratio} times d_model {self.d_model} is no whole number")


@strict
class ReplitLMConfig(MptHuggingFaceConfig):
    """What a config.json of Replit's first model says, in MPT's names; what it leaves out is as in Replit's code."""

    model_type = "replit_lm"

    alibi: bool = False
    no_bias: bool = False


def in_one_spelling(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config.json with the entries of its parts beside the others, all in MPT's names, and without nulls.

    A part that is no JSON object stays what it is.
    """
    flat = dict(raw)
    for name, entries in _PARTS.items():
        part = flat.pop(name, None)
        if isinstance(part, Mapping):
            flat |= {entry: part[entry] for entry in entries if entry in part}
        else:
            flat[name] = part
    return {_NAMES.get(name, name): value for name, value in flat.items() if value is not None}


def read_huggingface_config(raw: dict[str, Any]) -> MptHuggingFaceConfig:
    """Builds the config of a config.json in either spelling.

    Raises:
        StrictDataclassError: a value is of a wrong type, or sizes do not fit each other.
    """
    config_class = ReplitLMConfig if raw.get("model_type") == ReplitLMConfig.model_type else MptHuggingFaceConfig
    known = {field.name for field in fields(config_class)}
    return config_class(**{name: value for name, value in in_one_spelling(raw).items() if name in known})
