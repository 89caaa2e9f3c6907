"""The config.json of an LFM2 model as classes of our own.

Their fields and defaults are those of transformers' `Lfm2Config` and `Lfm2MoeConfig`, whose import brings in torch's
compiler and tensors of many devices: a second, and 80 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["Lfm2HuggingFaceConfig", "Lfm2MoeHuggingFaceConfig"]


@strict
class _HuggingFaceConfig(PretrainedConfig):
    """What a config.json of either says, RoPE's settings in one place, `rope_parameters`.

    Attributes:
        head_dim: numbers per head; `hidden_size` over the heads where it is left out.
        conv_bias: whether the convolutions and the layers around them have a bias.
        conv_L_cache: taps of a convolution.
        layer_types: `full_attention` or `conv` per layer.
    """

    default_theta = 1_000_000.0

    vocab_size: int = 65536
    hidden_size: int = 2560
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None
    max_position_embeddings: int = 128_000
    norm_eps: float = 1e-5
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True
    rope_parameters: dict[str, Any] | None = None
    conv_bias: bool = False
    conv_L_cache: int = 3  # noqa: N815 — the config.json's name
    layer_types: list[str] | None = None

    def __post_init__(self, **others: Any) -> None:
        self.tie_word_embeddings = others.pop("tie_embedding", self.tie_word_embeddings)
        super().__post_init__(**others)  # type: ignore[no-untyped-call]  # transformers'


@strict
class Lfm2HuggingFaceConfig(_HuggingFaceConfig):
    """What a config.json of LFM2 says.

    Attributes:
        block_multiple_of: the feed-forward layer's size is made a multiple of it, if that is adjusted.
        block_ffn_dim_multiplier: and two thirds of it are multiplied by this before; None for 1.
        block_auto_adjust_ff_dim: whether it is.
        full_attn_idxs: the layers that have attention where `layer_types` is left out; all do where both are.
    """

    model_type = "lfm2"

    block_multiple_of: int = 256
    block_ffn_dim_multiplier: float | int | None = 1.0
    block_auto_adjust_ff_dim: bool = True
    full_attn_idxs: list[int] | None = None

    def __post_init__(self, **others: Any) -> None:
        if self.layer_types is None:
            numbers = range(self.num_hidden_layers)
            with_attention = numbers if self.full_attn_idxs is None else self.full_attn_idxs
            self.layer_types = ["full_attention" if number in with_attention else "conv" for number in numbers]
        self.intermediate_size = others.pop("block_ff_dim", self.intermediate_size)
        super().__post_init__(**others)


@strict
class Lfm2MoeHuggingFaceConfig(_HuggingFaceConfig):
    """What a config.json of LFM2-MoE says.

    Attributes:
        intermediate_size: of the layers without experts.
        moe_intermediate_size: of an expert.
        num_dense_layers: the first layers, so many, have no experts.
        use_expert_bias: whether the scores of experts have a correction for the choice.
        routed_scaling_factor: of the weights of a token's experts.
        norm_topk_prob: whether these are divided by their sum before.
    """

    model_type = "lfm2_moe"

    hidden_size: int = 2048
    intermediate_size: int = 7168
    moe_intermediate_size: int = 1792
    num_dense_layers: int = 2
    num_experts_per_tok: int = 4
    num_experts: int = 32
    use_expert_bias: bool = True
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = True
