"""A shape of about a hundred million numbers of each `model_type` that a plugin serves, in realistic proportions."""

from __future__ import annotations

from typing import Any

__all__ = ["TYPES"]

_VOCAB_SIZE = 49_152  # SmolLM2's, whose tokenizer these models have
_DENSE = {
    "vocab_size": _VOCAB_SIZE,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
_MIXTURE = {**_DENSE, "moe_intermediate_size": 512, "num_experts": 8, "num_experts_per_tok": 2}
_FEW_LARGE = {**_DENSE, "intermediate_size": 512, "num_local_experts": 8, "num_experts_per_tok": 2}
_ALL_HEADS = {**_DENSE, "num_key_value_heads": 12}
_WINDOWED = {**_DENSE, "sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"] * 4}
_GEMMA = {"query_pre_attn_scalar": 64, "tie_word_embeddings": True}
_GPT = {"vocab_size": _VOCAB_SIZE, "n_positions": 2048, "n_embd": 768, "n_layer": 8, "n_head": 12}
_HYBRID = {
    **_DENSE,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}
_LATENT = {
    **_ALL_HEADS,
    "moe_intermediate_size": 512,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 256,
    "q_lora_rank": 384,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "head_dim": 32,
}

TYPES: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": _VOCAB_SIZE, "hidden_size": 768, "n_layer": 8, "n_head": 12},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "falcon": {
        "vocab_size": _VOCAB_SIZE,
        "hidden_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
    },
    "gemma": {**_DENSE, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "gemma2": {**_WINDOWED, **_GEMMA},
    "gemma3_text": {**_WINDOWED, **_GEMMA},
    "gpt2": _GPT,
    "gpt_neox": {**_ALL_HEADS, "intermediate_size": 3072},
    "gpt_oss": {**_WINDOWED, "intermediate_size": 512, "num_local_experts": 8, "num_experts_per_tok": 2},
    "gptj": {**_GPT, "rotary_dim": 64},
    "granitemoehybrid": {
        **_FEW_LARGE,
        "shared_intermediate_size": 1024,
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"] * 2,
        "attention_multiplier": 1 / 64,
        "mamba_n_heads": 24,
        "mamba_d_state": 128,
    },
    "lfm2": {**_DENSE, "layer_types": ["conv", "conv", "full_attention", "conv"] * 2},
    "lfm2_moe": {**_MIXTURE, "layer_types": ["conv", "conv", "full_attention", "conv"] * 2},
    "llama": _DENSE,
    "ministral3": _DENSE,
    "mistral": {**_DENSE, "sliding_window": 512},
    "mixtral": _FEW_LARGE,
    "mpt": {
        "vocab_size": _VOCAB_SIZE,
        "d_model": 768,
        "n_heads": 12,
        "n_layers": 8,
        "max_seq_len": 2048,
    },
    "nemotron_h": {
        **_DENSE,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"] * 3,
        "mamba_num_heads": 24,
        "moe_intermediate_size": 512,
        "moe_shared_expert_intermediate_size": 1024,
    },
    "olmo": _ALL_HEADS,
    "olmo2": _ALL_HEADS,
    "olmo3": {**_WINDOWED, "num_key_value_heads": 12},
    "opt": {
        "vocab_size": _VOCAB_SIZE,
        "hidden_size": 768,
        "word_embed_proj_dim": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
    },
    "phi": _ALL_HEADS,
    "phi3": _DENSE,
    "qwen2": _DENSE,
    "qwen2_moe": {**_MIXTURE, "shared_expert_intermediate_size": 1024},
    "qwen3": _DENSE,
    "qwen3_5_moe_text": {**_MIXTURE, **_HYBRID, "shared_expert_intermediate_size": 512},
    "qwen3_5_text": _HYBRID,
    "qwen3_moe": _MIXTURE,
    "qwen3_next": {**_MIXTURE, **_HYBRID, "shared_expert_intermediate_size": 512},
}
"""What a config of the type is given, by its `model_type`."""
