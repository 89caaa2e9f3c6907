"""Tiny configs of an architecture, in which every number matters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipezoo_core.testing.failures import UnknownModelTypeError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["sharpened", "tiny_configs"]

_SIZES = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rotary_dim": 16,
    "max_position_embeddings": 256,
    "sliding_window": 12,
    "max_window_layers": 1,
    "attention_chunk_size": 12,
    "word_embed_proj_dim": 64,
    "ffn_dim": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 48,
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 24,
    "ssm_state_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""By transformers' names. Heads are no parts of the hidden size, so that who confuses the two sees it."""

_SIZES_OF_IMAGES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}
_HIDDEN_WITHOUT_HEAD_DIM = 128  # heads of 32 numbers there, too: the kernels want a multiple of that
_WITHOUT_EFFECT = {
    "use_cache", "is_decoder", "is_encoder_decoder", "add_cross_attention", "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn", "output_router_logits", "use_bidirectional_attention",
    "apply_residual_connection_post_layernorm",
    "moe_shared_expert_overlap", "rescale_prenorm_residual", "use_mamba_kernels",
    "no_bias", "slow_but_exact", "summary_use_proj", "summary_proj_to_labels",
}  # fmt: skip
"""Those that change nothing of what is computed, or make another kind of model of it: they are not tried."""

_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_STATES = {
    **dict.fromkeys(("lfm2", "lfm2_moe"), "conv"),
    **dict.fromkeys(("granitemoehybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), "linear_attention"),
}
"""What `layer_types` calls layers that keep a state, where by default there are none, or no others."""
_EPS = 0.03  # a wrong one shows; one of 1e-6 does not
_SMALL = 1e-3
_THETA, _FURTHER = 700.0, 400.0
_USUAL_THETA = 5000.0  # and above: what somebody may have written down in place of reading it


def tiny_configs(model_type: str, config_class: type[PretrainedConfig] | None = None) -> dict[str, dict[str, Any]]:
    """Returns tiny configs of a type: a plain one, and others that differ from it in one switch each.

    A plugin may refuse some of them. Take away those that it does not serve, and add what its config can say besides.

    Args:
        model_type: as in config.json.
        config_class: whose fields and defaults they are; None for transformers' class.

    Raises:
        UnknownModelTypeError: transformers has no class of this type.
    """
    known = config_class or _known_class(model_type)
    if known is None:
        raise UnknownModelTypeError(
            f"transformers has no config class of model_type {model_type!r}: name a reference, or a class"
        )
    if "text_config" in known.sub_configs:
        whole = known()
        of_part = type(whole.text_config)
        others = {"vision_config": _of_images(whole.vision_config)} if "vision_config" in known.sub_configs else {}
        return {
            name: {"model_type": model_type, "text_config": {"model_type": of_part.model_type, **values}, **others}
            for name, values in _variants(of_part)
        }
    return {name: {"model_type": model_type, **values} for name, values in _variants(known)}


def _variants(config_class: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    names = {config_class.attribute_map.get(name, name): size for name, size in _SIZES.items()}
    plain: dict[str, Any] = {name: size for name, size in names.items() if name in defaults}
    if "head_dim" not in defaults:
        plain[config_class.attribute_map.get("hidden_size", "hidden_size")] = _HIDDEN_WITHOUT_HEAD_DIM
    if "kv_lora_rank" in defaults:  # a latent has keys for every query head
        plain["num_key_value_heads"] = _SIZES["num_attention_heads"]
    if state := _STATES.get(config_class.model_type):
        plain["layer_types"] = [state, "full_attention", state]
    yield "plain", plain
    for switch in _switches(config_class):
        yield switch, {**plain, switch: not defaults[switch]}
    if {"layer_types", "sliding_window"} <= defaults.keys():
        uses = {"use_sliding_window": True} if "use_sliding_window" in defaults else {}
        yield "layer_types", {**plain, **uses, "layer_types": _MIXED}


def _of_images(made: PretrainedConfig) -> dict[str, Any]:
    """Returns a small config of the part that sees images, which nothing is asked of: it only has to be made."""
    fields = {field.name for field in dataclasses.fields(made)}
    sizes = {made.attribute_map.get(name, name): size for name, size in _SIZES_OF_IMAGES.items()}
    return {"model_type": made.model_type, **{name: size for name, size in sizes.items() if name in fields}}


def _switches(config_class: Any) -> list[str]:
    from transformers import PretrainedConfig

    common = {field.name for field in dataclasses.fields(PretrainedConfig)} - {"tie_word_embeddings"}
    fields = dataclasses.fields(config_class)
    return [
        field.name
        for field in fields
        if isinstance(field.default, bool) and field.name not in common and field.name not in _WITHOUT_EFFECT
    ]


def sharpened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config with other numbers where usual ones would hide a mistake, whatever it says or leaves out.

    An epsilon of 1e-6 does not show in the logits, and a RoPE base of 10,000 is what a plugin has that does not read
    it. They become 0.03 and 700, where transformers knows the type.

    Args:
        config: what a config.json says. It is not changed.
    """
    if "text_config" in config:
        return {**config, "text_config": sharpened(config["text_config"])}
    config_class = _known_class(config.get("model_type"))
    if config_class is None:
        return dict(config)
    made = config_class.from_dict(dict(config))
    values = dict(config)
    for field in dataclasses.fields(config_class):
        value = getattr(made, field.name, None)
        if field.name.endswith(("eps", "epsilon")) and isinstance(value, float) and value < _SMALL:
            values[field.name] = _EPS
    rope = getattr(made, "rope_parameters", None)
    if rope:
        values = {name: value for name, value in values.items() if name not in ("rope_theta", "rope_scaling")}
        values["rope_parameters"] = _with_other_base(rope)
    return values


def _with_other_base(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Returns RoPE's settings with small bases, of which layers of different kinds have different ones."""
    kinds = {name: value for name, value in rope.items() if isinstance(value, Mapping)}
    if kinds:
        return {
            name: {**value, "rope_theta": _THETA + number * _FURTHER} if _is_usual(value) else dict(value)
            for number, (name, value) in enumerate(kinds.items())
        }
    return {**rope, "rope_theta": _THETA} if _is_usual(rope) else dict(rope)


def _is_usual(rope: Mapping[str, Any]) -> bool:
    return rope.get("rope_type", "default") == "default" and (rope.get("rope_theta") or 0) >= _USUAL_THETA


def _known_class(model_type: object) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type] if isinstance(model_type, str) and model_type in CONFIG_MAPPING else None
