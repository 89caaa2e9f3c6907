"""The config.json of a hybrid Qwen model as classes of our own.

Their fields and defaults are those of transformers' `Qwen3NextConfig`, `Qwen3_5TextConfig` and `Qwen3_5MoeTextConfig`,
whose import brings in torch's compiler and tensors of many devices: a second, and 80 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

from pipezoo_core.errors import UnsupportedModelError

__all__ = [
    "Qwen3NextHuggingFaceConfig",
    "Qwen35HuggingFaceConfig",
    "Qwen35MoeHuggingFaceConfig",
    "text_part",
    "text_part_of_mixture",
]

_PART_ROTATED = 0.25
_FULL_ATTENTION_INTERVAL = 4


@strict
class _HybridHuggingFaceConfig(PretrainedConfig):
    """What all of them say, RoPE's settings in one place, `rope_parameters`.

    Attributes:
        layer_types: `linear_attention` or `full_attention` per layer; where it is left out, every fourth is the latter,
            or every one of `full_attention_interval`.
        linear_conv_kernel_dim: rows that the convolution of a linear layer sees.
        linear_key_head_dim: numbers per head of its queries and keys.
        linear_value_head_dim: numbers per head of its values.
        linear_num_key_heads: its heads of queries, and as many of keys.
        linear_num_value_heads: its heads of values.

    Raises:
        UnsupportedModelError: `full_attention_interval` is needed, and no number of layers.
    """

    ignore_keys_at_rope_validation = {"mrope_interleaved", "mrope_section"}  # noqa: RUF012 - as transformers declares it

    vocab_size: int = 151936
    hidden_size: int = 2048
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 256
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    layer_types: list[str] | None = None
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **others: Any) -> None:
        others.setdefault("partial_rotary_factor", _PART_ROTATED)
        if self.layer_types is None:
            interval = others.pop("full_attention_interval", _FULL_ATTENTION_INTERVAL)
            if type(interval) is not int or interval < 1:
                raise UnsupportedModelError(
                    "the config's full_attention_interval does not say which layers are attention",
                    found=repr(interval),
                    allowed="a whole number from 1",
                )
            self.layer_types = [
                "linear_attention" if (i + 1) % interval else "full_attention" for i in range(self.num_hidden_layers)
            ]
        super().__post_init__(**others)  # type: ignore[no-untyped-call]  # transformers'


@strict
class Qwen3NextHuggingFaceConfig(_HybridHuggingFaceConfig):
    """What a config.json of Qwen3-Next says; its experts as in `Qwen2MoeHuggingFaceConfig`."""

    model_type = "qwen3_next"

    intermediate_size: int = 5632
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None
    num_experts: int = 512
    num_experts_per_tok: int = 10
    norm_topk_prob: bool = True
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512

    def __post_init__(self, **others: Any) -> None:
        if self.mlp_only_layers is None:
            self.mlp_only_layers = []
        super().__post_init__(**others)


@strict
class Qwen35HuggingFaceConfig(_HybridHuggingFaceConfig):
    """What a config.json of Qwen3.5 says of its text part."""

    model_type = "qwen3_5_text"

    vocab_size: int = 248320
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_key_value_heads: int = 4


@strict
class Qwen35MoeHuggingFaceConfig(_HybridHuggingFaceConfig):
    """What a config.json of Qwen3.5 with experts says of its text part; all layers have them."""

    model_type = "qwen3_5_moe_text"
    decoder_sparse_step = 1
    mlp_only_layers = ()
    norm_topk_prob = True

    vocab_size: int = 248320
    num_hidden_layers: int = 40
    num_experts: int = 256
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512


def text_part(config: Mapping[str, Any]) -> Qwen35HuggingFaceConfig:
    """Returns what the config.json of a Qwen3.5 that also sees says of its text part."""
    return Qwen35HuggingFaceConfig.from_dict(_text_part(config))


def text_part_of_mixture(config: Mapping[str, Any]) -> Qwen35MoeHuggingFaceConfig:
    """Returns the same of one with experts."""
    return Qwen35MoeHuggingFaceConfig.from_dict(_text_part(config))


def _text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    text = config.get("text_config") or config  # what has no other part may say all at the top
    return {**text, "tie_word_embeddings": config.get("tie_word_embeddings", False)}
