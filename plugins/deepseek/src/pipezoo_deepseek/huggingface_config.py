"""The config.json of a DeepSeek model as classes of our own.

Their fields and defaults are those of transformers' `DeepseekV2Config` and `DeepseekV3Config`, whose import brings in
torch's compiler and tensors of many devices: a second, and 80 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["DeepseekV2HuggingFaceConfig", "DeepseekV3HuggingFaceConfig"]


@strict
class DeepseekV2HuggingFaceConfig(PretrainedConfig):
    """What a config.json of DeepSeek-V2 says, RoPE's settings in one place, `rope_parameters`.

    Attributes:
        moe_intermediate_size: numbers per row inside an expert.
        num_key_value_heads: as many as query heads.
        n_routed_experts: of each layer that has experts.
        n_shared_experts: experts that every token goes through besides.
        num_experts_per_tok: experts that a token goes through.
        first_k_dense_replace: the first layers, so many, have no experts.
        routed_scaling_factor: of the experts' weights.
        topk_method: `greedy` or `group_limited_greedy`.
        n_group: groups of experts, of which a token has `topk_group`.
        kv_lora_rank: numbers per token of the latent of keys and values.
        q_lora_rank: numbers per token of the latent of queries; None without one.
        qk_nope_head_dim: numbers per head of queries and keys that are not rotated.
        qk_rope_head_dim: numbers per head of queries, and of the one key for all heads, that are.
        v_head_dim: numbers per head of values.
        attention_bias: whether the projections from and to the hidden state have a bias, but that of the queries.
        mlp_bias: whether those of the feed-forward layers that are no experts have one.
        head_dim: numbers that RoPE rotates, `qk_rope_head_dim`.
    """

    model_type = "deepseek_v2"
    attribute_map = {"num_experts": "n_routed_experts"}  # noqa: RUF012 - transformers' own

    vocab_size: int = 102400
    hidden_size: int = 4096
    intermediate_size: int = 11008
    moe_intermediate_size: int = 1407
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    n_routed_experts: int = 64
    n_shared_experts: int = 2
    num_experts_per_tok: int | None = None
    first_k_dense_replace: int | None = 0
    norm_topk_prob: bool | None = False
    routed_scaling_factor: float = 1.0
    topk_method: str | None = "greedy"
    n_group: int | None = None
    topk_group: int | None = None
    kv_lora_rank: int = 512
    q_lora_rank: int | None = 1536
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **others: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self.head_dim = self.qk_rope_head_dim
        super().__post_init__(**others)  # type: ignore[no-untyped-call]  # transformers'


@strict
class DeepseekV3HuggingFaceConfig(DeepseekV2HuggingFaceConfig):
    """What a config.json of DeepSeek-V3 says.

    Attributes:
        rope_interleave: whether neighbours are the pairs that RoPE rotates, else halves.
    """

    model_type = "deepseek_v3"
    attribute_map = {"num_local_experts": "n_routed_experts"}  # noqa: RUF012 - transformers' own

    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 61
    num_attention_heads: int = 128
    num_key_value_heads: int | None = 128
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    num_experts_per_tok: int | None = 8
    first_k_dense_replace: int | None = 3
    norm_topk_prob: bool | None = True
    routed_scaling_factor: float = 2.5
    topk_method: str | None = "noaux_tc"
    n_group: int | None = 8
    topk_group: int | None = 4
    max_position_embeddings: int = 4096
    rope_interleave: bool | None = True
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
