"""Granite 4's hybrids in GGUF files: their config, and the names and shapes of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from pipezoo_core.weights import (
    SOFTMAX,
    GGUFDecoder,
    GGUFFile,
    LazyTensor,
    as_vector,
    in_halves,
    logarithm_of_rates,
    renamed_from_gguf,
    with_a_channel,
)
from pipezoo_granite.weight_adapters import adapt_safetensors

__all__ = ["adapt_gguf", "config_from_gguf"]

_ARCHITECTURE = "granitehybrid"
_NAMES = {
    "ssm_in": "mamba.in_proj",
    "ssm_conv1d": "mamba.conv1d",
    "ssm_a": "mamba.A_log",
    "ssm_d": "mamba.D",
    "ssm_dt.bias": "mamba.dt_bias",
    "ssm_norm": "mamba.norm",
    "ssm_out": "mamba.out_proj",
    **{f"ffn_{part}{kind}": f"shared_mlp.{part}_proj" for part in ("gate", "up", "down") for kind in ("", "_shexp")},
    "ffn_gate_inp": "block_sparse_moe.router",
}


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for. Layers without key/value heads keep a state.

    Raises:
        CorruptCheckpointError: a key that every such file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: layers differ in their heads, or the file rotates, chooses experts or has windows in a
            way that no config.json can say.
    """
    decoder = GGUFDecoder(file, _ARCHITECTURE)
    decoder.check_neutral(expert_gating_func=SOFTMAX)
    heads = decoder.kv_heads()
    fields = decoder.config(num_kv_heads=max(heads))
    width, num_heads = decoder.size("ssm.inner_size"), decoder.size("ssm.time_step_rank")
    said = {key.removeprefix(f"{_ARCHITECTURE}."): value for key, value in file.metadata.items()}
    has_experts = bool(said.get("expert_count"))
    kinds = {name.partition(".")[2].partition(".")[2] for name in file.weights}  # without the layer's number
    return {
        "model_type": "granitemoehybrid",
        "architectures": ["GraniteMoeHybridForCausalLM"],
        **fields,
        "layer_types": ["full_attention" if number else "linear_attention" for number in heads],
        "position_embedding_type": "rope" if said.get("rope.scaling.finetuned", True) else None,
        "attention_bias": "attn_q.bias" in kinds,
        "embedding_multiplier": said.get("embedding_scale") or 1.0,  # 0 is none, too
        "residual_multiplier": said.get("residual_scale") or 1.0,
        "attention_multiplier": said.get("attention.scale") or fields["head_dim"] ** -0.5,
        "logits_scaling": said.get("logit_scale") or 1.0,
        "num_local_experts": decoder.size("expert_count") if has_experts else 0,
        "num_experts_per_tok": decoder.size("expert_used_count") if has_experts else 0,
        "shared_intermediate_size": decoder.size("expert_shared_feed_forward_length", fields["intermediate_size"]),
        "mamba_n_heads": num_heads,
        "mamba_d_head": width // num_heads,
        "mamba_n_groups": decoder.size("ssm.group_count"),
        "mamba_d_state": decoder.size("ssm.state_size"),
        "mamba_d_conv": decoder.size("ssm.conv_kernel"),
        "mamba_expand": width // fields["hidden_size"],
        "mamba_conv_bias": "ssm_conv1d.bias" in kinds,
        "mamba_proj_bias": "ssm_in.bias" in kinds,
    }


def adapt_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own, the decay's rate in place of its logarithm, and q and k for neighbours.

    The names of a LoRA adapter are those of the checkpoint that it was trained on: they become the module's, too.

    Raises:
        CorruptCheckpointError: when a rate is read that is not below 0.
    """
    changes = {
        "attn_q": in_halves(config.num_attention_heads),
        "attn_k": in_halves(config.num_key_value_heads),
        "ssm_a": logarithm_of_rates,
        "ssm_conv1d": with_a_channel,
        "ssm_d": as_vector,
        "ssm_norm": as_vector,
    }
    renamed = renamed_from_gguf(tensors, changes, _NAMES, experts="block_sparse_moe.experts")
    return adapt_safetensors(renamed, config)
