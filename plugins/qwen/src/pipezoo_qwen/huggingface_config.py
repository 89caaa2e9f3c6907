"""The config.json of a Qwen model as classes of our own.

Their fields and defaults are those of transformers' `Qwen2Config`, `Qwen3Config`, `Qwen2MoeConfig` and
`Qwen3MoeConfig`, whose import brings in torch's compiler and tensors of many devices: a second, and 80 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from collections.abc import Iterable
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = [
    "Qwen2HuggingFaceConfig",
    "Qwen2MoeHuggingFaceConfig",
    "Qwen3HuggingFaceConfig",
    "Qwen3MoeHuggingFaceConfig",
]


@strict
class _QwenHuggingFaceConfig(PretrainedConfig):
    """What all of them say, RoPE's settings in one place, `rope_parameters`.

    Attributes:
        num_key_value_heads: key/value heads; as many as query heads where it says null.
        hidden_act: a name of `pipezoo_core.layers.ACTIVATIONS`.
        sliding_window: how many tokens a query of a windowed layer sees, itself included; None or 0 without
            `use_sliding_window`.
    """

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **others: Any) -> None:
        if not self.use_sliding_window:
            self.sliding_window = None
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**others)  # type: ignore[no-untyped-call]  # transformers'


@strict
class Qwen2HuggingFaceConfig(_QwenHuggingFaceConfig):
    """What a config.json of Qwen2 says.

    Attributes:
        max_window_layers: the first layers, so many, have no window.
        layer_types: `full_attention` or `sliding_attention` per layer; as the window's settings say where it is left
            out.
    """

    model_type = "qwen2"

    max_window_layers: int = 28
    layer_types: list[str] | None = None

    def __post_init__(self, **others: Any) -> None:
        if self.layer_types is None:
            has_window = self.use_sliding_window and self.sliding_window is not None
            num_full = self.max_window_layers if has_window else self.num_hidden_layers
            self.layer_types = _layer_types(i >= num_full for i in range(self.num_hidden_layers))
        super().__post_init__(**others)


@strict
class Qwen3HuggingFaceConfig(Qwen2HuggingFaceConfig):
    """What a config.json of Qwen3 says.

    Attributes:
        head_dim: numbers per head.
        attention_bias: whether q, k, v and o have a bias.
    """

    model_type = "qwen3"

    head_dim: int = 128
    attention_bias: bool = False


@strict
class Qwen2MoeHuggingFaceConfig(_QwenHuggingFaceConfig):
    """What a config.json of Qwen2-MoE says.

    Attributes:
        max_window_layers: of the first layers, so many, every other one has a window, from the first on.
        layer_types: as in `Qwen2HuggingFaceConfig`.
        qkv_bias: whether q, k and v have a bias.
        decoder_sparse_step: every layer of so many is a mixture of experts, the last one of them.
        mlp_only_layers: but these are none.
        num_experts_per_tok: of `num_experts`, so many are chosen for a token.
        norm_topk_prob: whether their weights are divided by their sum.
        moe_intermediate_size: of each expert.
        shared_expert_intermediate_size: of the expert that all tokens go to.
    """

    model_type = "qwen2_moe"

    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 16
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    qkv_bias: bool = True
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None
    num_experts: int = 60
    num_experts_per_tok: int = 4
    norm_topk_prob: bool = False
    moe_intermediate_size: int = 1408
    shared_expert_intermediate_size: int = 5632

    def __post_init__(self, **others: Any) -> None:
        if self.mlp_only_layers is None:
            self.mlp_only_layers = []
        if self.layer_types is None:
            num_mixed = self.max_window_layers if self.use_sliding_window else 0
            self.layer_types = _layer_types(i % 2 == 0 and i < num_mixed for i in range(self.num_hidden_layers))
        super().__post_init__(**others)
        if not self.use_sliding_window:
            self.sliding_window = 0


@strict
class Qwen3MoeHuggingFaceConfig(_QwenHuggingFaceConfig):
    """What a config.json of Qwen3-MoE says, as in `Qwen2MoeHuggingFaceConfig`; a window is of all layers."""

    model_type = "qwen3_moe"
    attribute_map = {"num_experts": "num_local_experts"}  # noqa: RUF012 - as transformers declares it

    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_hidden_layers: int = 24
    num_key_value_heads: int | None = 4
    attention_bias: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None
    num_experts: int = 128
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = False
    moe_intermediate_size: int = 768

    def __post_init__(self, **others: Any) -> None:
        if self.mlp_only_layers is None:
            self.mlp_only_layers = []
        super().__post_init__(**others)


def _layer_types(has_window: Iterable[bool]) -> list[str]:
    return ["sliding_attention" if windowed else "full_attention" for windowed in has_window]
