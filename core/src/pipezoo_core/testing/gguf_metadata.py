"""What llama.cpp's converters write of a config.json into a GGUF file's metadata, and what they leave open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["architecture_of", "granted", "metadata_of"]

_ARCHITECTURES = {  # of text models that llama.cpp calls otherwise
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "gemma3_text": "gemma3",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss",
    "granitemoehybrid": "granitehybrid",
    "lfm2_moe": "lfm2moe",
    "ministral3": "mistral3",
    "mistral": "llama",
    "mixtral": "llama",
    "olmo3": "olmo2",
    "phi": "phi2",
    "qwen2_moe": "qwen2moe",
    "qwen3_5_moe_text": "qwen35moe",
    "qwen3_5_text": "qwen35",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
}
_ENTRIES: Mapping[str, tuple[type, tuple[str, ...]]] = {
    "context_length": (int, ("max_position_embeddings",)),
    "embedding_length": (int, ("hidden_size",)),
    "block_count": (int, ("num_hidden_layers",)),
    "feed_forward_length": (int, ("intermediate_size", "n_inner", "ffn_hidden_size")),
    "use_parallel_residual": (bool, ("use_parallel_residual",)),
    "attention.head_count": (int, ("num_attention_heads",)),
    "attention.head_count_kv": (int, ("num_key_value_heads",)),
    "attention.layer_norm_rms_epsilon": (float, ("rms_norm_eps",)),
    "attention.layer_norm_epsilon": (float, ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")),
    "attention.clamp_kqv": (float, ("clip_qkv",)),
    "attention.scale": (float, ("attention_multiplier",)),
    "attention.kv_lora_rank": (int, ("kv_lora_rank",)),
    "attention.q_lora_rank": (int, ("q_lora_rank",)),
    "attn_logit_softcapping": (float, ("attn_logit_softcapping",)),
    "final_logit_softcapping": (float, ("final_logit_softcapping",)),
    "embedding_scale": (float, ("embedding_multiplier",)),
    "residual_scale": (float, ("residual_multiplier",)),
    "logit_scale": (float, ("logits_scaling",)),
    "leading_dense_block_count": (int, ("first_k_dense_replace",)),
    "expert_count": (int, ("num_experts", "num_local_experts", "n_routed_experts")),
    "expert_used_count": (int, ("num_experts_per_tok",)),
    "expert_shared_count": (int, ("n_shared_experts",)),
    "expert_feed_forward_length": (int, ("moe_intermediate_size",)),
    "expert_shared_feed_forward_length": (int, ("shared_expert_intermediate_size",)),
    "expert_weights_scale": (float, ("routed_scaling_factor",)),
}
"""By their keys below the architecture's name: their types, and how a config calls them, the first that it has."""

_SLIDING, _FULL, _MIXTURE = "sliding_attention", "full_attention", "moe"
_WINDOWED = ("gemma2", "gemma3_text", "gpt_oss", "olmo3", "phi3")  # of others a file says no window
_SOFTMAX, _SIGMOID = 1, 2
_BASE_OF_WINDOWS = 10_000.0  # of Gemma 3, in every file
_LENGTH_OF_BLOOM = 2048  # of the published ones
_LENGTH_OF_GRANITE = 2**20  # of hybrids, which know no positions
_LAYERS_OF_GEMMA3 = 6  # of which the last one has no window


def architecture_of(config: Any) -> str:
    """Returns what llama.cpp calls a text model: as its `model_type`, but where it has another name for that.

    Args:
        config: as for `metadata_of`.
    """
    model_type: str = config.model_type
    if model_type == "nemotron_h" and _MIXTURE in config.layer_types:
        return "nemotron_h_moe"
    return _ARCHITECTURES.get(model_type, model_type)


def metadata_of(config: Any) -> dict[str, Any]:
    """Returns a file's entries, by their keys below the architecture's name.

    Args:
        config: what transformers makes of the config.json of a text model.
    """
    found = {key: _entry(config, kind, names) for key, (kind, names) in _ENTRIES.items()}
    found |= _of_heads(config) | _of_positions(config)
    if config.model_type in _WINDOWED and _SLIDING in (getattr(config, "layer_types", None) or [_SLIDING]):
        found["attention.sliding_window"] = config.sliding_window
    found["feed_forward_length"] = found["feed_forward_length"] or 4 * config.hidden_size
    if config.model_type in _OWN:
        found |= _OWN[config.model_type](config)
    return {key: value for key, value in found.items() if value is not None}


def granted(config: Any) -> dict[str, Any]:
    """Returns what a config.json has to say because a file of its `model_type` cannot say anything else.

    Args:
        config: as for `metadata_of`.
    """
    return _GRANTED[config.model_type](config) if config.model_type in _GRANTED else {}


def _entry(config: Any, kind: type, names: tuple[str, ...]) -> Any:
    value = next((each for name in names if (each := getattr(config, name, None)) is not None), None)
    return None if value is None else kind(value)


def _head_dim(config: Any) -> int:
    size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size


def _of_heads(config: Any) -> dict[str, Any]:
    return {"attention.key_length": _head_dim(config), "attention.value_length": _head_dim(config)}


def _of_positions(config: Any) -> dict[str, Any]:
    """RoPE's entries: of layers with windows and without, those of the latter."""
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        return {}
    rope = rope.get(_FULL, rope)
    found = {
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(_head_dim(config) * rope.get("partial_rotary_factor", 1.0)),
    }
    if rope["rope_type"] in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
        found["rope.scaling.original_context_length"] = rope.get("original_max_position_embeddings")
    return found


def _of_deepseek(config: Any) -> dict[str, Any]:
    """As before May 2025, with the sizes of a head and its whole matrix; only groups that are chosen are said."""
    is_v3 = config.model_type == "deepseek_v3"
    has_groups = is_v3 or config.topk_method == "group_limited_greedy"
    return {
        "attention.key_length": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "attention.value_length": config.v_head_dim,
        "rope.dimension_count": config.qk_rope_head_dim,
        "expert_gating_func": _SIGMOID if is_v3 else _SOFTMAX,
        "expert_weights_norm": config.norm_topk_prob if is_v3 else None,
        "expert_group_count": config.n_group if has_groups else None,
        "expert_group_used_count": config.topk_group if has_groups else None,
    }


def _of_falcon(config: Any) -> dict[str, Any]:
    has_groups = config.new_decoder_architecture or not config.multi_query
    return {"attention.head_count_kv": config.num_kv_heads if has_groups else 1}


def _of_granite_hybrid(config: Any) -> dict[str, Any]:
    """Key/value heads in the layers that have attention, which knows no positions."""
    return {
        "context_length": _LENGTH_OF_GRANITE,
        "attention.head_count_kv": [config.num_key_value_heads * (kind == _FULL) for kind in config.layer_types],
        "rope.scaling.finetuned": False,
        "expert_shared_feed_forward_length": config.shared_intermediate_size,
        "ssm.conv_kernel": config.mamba_d_conv,
        "ssm.state_size": config.mamba_d_state,
        "ssm.group_count": config.mamba_n_groups,
        "ssm.inner_size": config.mamba_expand * config.hidden_size,
        "ssm.time_step_rank": config.mamba_n_heads,
    }


def _of_lfm2(config: Any) -> dict[str, Any]:
    """The feed-forward layer's size as it is computed with."""
    size = config.intermediate_size
    if config.block_auto_adjust_ff_dim:
        size = int(config.block_ffn_dim_multiplier * int(2 * size / 3))
        size = -(-size // config.block_multiple_of) * config.block_multiple_of
    return {**_of_short_convolutions(config), "feed_forward_length": size}


def _of_lfm2_moe(config: Any) -> dict[str, Any]:
    return {
        **_of_short_convolutions(config),
        "leading_dense_block_count": config.num_dense_layers,
        "expert_gating_func": _SIGMOID,
        "expert_weights_scale": None,
    }


def _of_short_convolutions(config: Any) -> dict[str, Any]:
    """Key/value heads in the layers that have attention; one epsilon, by the name of RMSNorm's."""
    return {
        "attention.head_count_kv": [config.num_key_value_heads * (kind == _FULL) for kind in config.layer_types],
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "attention.layer_norm_epsilon": None,
        "shortconv.l_cache": config.conv_L_cache,
    }


def _of_nemotron(config: Any) -> dict[str, Any]:
    """Heads and sizes layer by layer, of a mixture those of experts alone; and a part of heads as if rotated."""
    kinds, is_mixture = config.layer_types, _MIXTURE in config.layer_types
    kind, size = (_MIXTURE, config.moe_intermediate_size) if is_mixture else ("mlp", config.intermediate_size)
    of_experts = {
        "expert_shared_feed_forward_length": config.moe_shared_expert_intermediate_size,
        "expert_weights_norm": config.norm_topk_prob,
        "expert_group_count": config.n_group,
        "expert_group_used_count": config.topk_group,
        "moe_latent_size": config.moe_latent_size,
    }
    others = [key for key in _ENTRIES if key.startswith("expert_")]
    return {
        **(of_experts if is_mixture else dict.fromkeys(others)),
        "attention.head_count_kv": [config.num_key_value_heads * (each == _FULL) for each in kinds],
        "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
        "attention.layer_norm_epsilon": None,
        "feed_forward_length": [size * (each == kind) for each in kinds],
        "rope.dimension_count": config.hidden_size // config.num_attention_heads,
        "ssm.conv_kernel": config.conv_kernel,
        "ssm.state_size": config.ssm_state_size,
        "ssm.group_count": config.n_groups,
        "ssm.inner_size": config.mamba_num_heads * config.mamba_head_dim,
        "ssm.time_step_rank": config.mamba_num_heads,
    }


def _of_qwen3_next(config: Any) -> dict[str, Any]:
    """Sizes of the layers with a state, in the words of Mamba; which these are only by an interval."""
    return {
        "full_attention_interval": 4,
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": config.linear_key_head_dim,
        "ssm.group_count": config.linear_num_key_heads,
        "ssm.time_step_rank": config.linear_num_value_heads,
        "ssm.inner_size": config.linear_num_value_heads * config.linear_value_head_dim,
    }


def _of_qwen3_5(config: Any) -> dict[str, Any]:
    """The same, and the sections of RoPE; of a mixture no size but those of its experts."""
    return {
        **_of_qwen3_next(config),
        "rope.dimension_sections": [11, 11, 10, 0],
        "feed_forward_length": getattr(config, "intermediate_size", None),
    }


_OWN: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "bloom": lambda config: {"context_length": getattr(config, "seq_length", _LENGTH_OF_BLOOM)},
    "deepseek_v2": _of_deepseek,
    "deepseek_v3": _of_deepseek,
    "falcon": _of_falcon,
    "gpt_oss": lambda config: {"expert_feed_forward_length": config.intermediate_size},
    "granitemoehybrid": _of_granite_hybrid,
    "lfm2": _of_lfm2,
    "lfm2_moe": _of_lfm2_moe,
    "nemotron_h": _of_nemotron,
    "olmo": lambda _: {"attention.layer_norm_epsilon": 1e-5},
    "olmo3": lambda config: {"attention.sliding_window_pattern": [kind == _SLIDING for kind in config.layer_types]},
    "phi3": lambda config: {"rope.scaling.original_context_length": config.original_max_position_embeddings},
    "qwen3_5_moe_text": _of_qwen3_5,
    "qwen3_5_text": _of_qwen3_5,
    "qwen3_next": _of_qwen3_next,
}


def _granted_of_gemma2(config: Any) -> dict[str, Any]:
    kinds = [_FULL if number % 2 else _SLIDING for number in range(config.num_hidden_layers)]
    return {"query_pre_attn_scalar": _head_dim(config), "layer_types": kinds}


def _granted_of_gemma3(config: Any) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": _BASE_OF_WINDOWS}
    return {
        "query_pre_attn_scalar": _head_dim(config),
        "num_hidden_layers": _LAYERS_OF_GEMMA3,
        "layer_types": [*[_SLIDING] * (_LAYERS_OF_GEMMA3 - 1), _FULL],
        "rope_parameters": {**config.rope_parameters, _SLIDING: local},
    }


_GRANTED: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "gemma2": _granted_of_gemma2,
    "gemma3_text": _granted_of_gemma3,
    "granitemoehybrid": lambda _: {
        "max_position_embeddings": _LENGTH_OF_GRANITE,
        "position_embedding_type": None,
    },
    "lfm2_moe": lambda _: {"norm_topk_prob": True, "routed_scaling_factor": 1.0},
    "mixtral": lambda _: {"sliding_window": None},
    "nemotron_h": lambda _: {"mlp_hidden_act": "relu2", "n_group": 1, "topk_group": 1},
    "olmo3": lambda config: {"rope_parameters": dict.fromkeys((_SLIDING, _FULL), config.rope_parameters[_FULL])},
    **dict.fromkeys(("qwen3_moe", "qwen3_next"), lambda _: {"norm_topk_prob": True}),
}
