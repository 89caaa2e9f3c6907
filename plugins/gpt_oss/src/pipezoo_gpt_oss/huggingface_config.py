"""The config.json of a gpt-oss model as a class of our own.

Its fields and defaults are those of transformers' `GptOssConfig`, whose import brings in torch's compiler and tensors
of many devices: a second, and 80 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["GptOssHuggingFaceConfig"]


@strict
class GptOssHuggingFaceConfig(PretrainedConfig):
    """What a config.json of gpt-oss says, RoPE's settings in one place, `rope_parameters`.

    Attributes:
        num_local_experts: of each layer.
        head_dim: numbers per head.
        sliding_window: how many tokens a query of a windowed layer sees, itself included.
        num_experts_per_tok: experts that a token goes through.
        swiglu_alpha: see `pipezoo_core.layers.ClampedGate`.
        swiglu_limit: likewise.
        layer_types: `full_attention` or `sliding_attention` per layer; in turn, a window first, where it is left out.
        attention_bias: whether q, k, v and o have a bias.
    """

    model_type = "gpt_oss"
    attribute_map = {"num_experts": "num_local_experts"}  # noqa: RUF012 - transformers' own
    default_theta = 150000.0

    num_hidden_layers: int = 36
    num_local_experts: int = 128
    vocab_size: int = 201088
    hidden_size: int = 2880
    intermediate_size: int = 2880
    head_dim: int = 64
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    sliding_window: int | None = 128
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: dict[str, Any] | None = None
    num_experts_per_tok: int = 4
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    layer_types: list[str] | None = None
    attention_bias: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **others: Any) -> None:
        if self.layer_types is None:
            self.layer_types = [
                "full_attention" if i % 2 else "sliding_attention" for i in range(self.num_hidden_layers)
            ]
        if self.rope_parameters is None:
            self.rope_parameters = {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            }
        super().__post_init__(**others)  # type: ignore[no-untyped-call]  # transformers'
