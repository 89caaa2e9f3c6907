"""The typed config of a DeepSeek model, read from a Hugging Face config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import ACTIVATIONS, Heads, Routing, max_rotary_length, max_shareable_length
from pipezoo_core.weights import SIGMOID, SOFTMAX, GGUFDecoder, GGUFFile, model_type_of

__all__ = ["DeepseekConfig", "config_from_gguf"]

_GGUF = "deepseek2"  # what llama.cpp calls V2 and V3
_ARCHITECTURES = {"deepseek_v2": "DeepseekV2ForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM"}
_METHODS_V2 = ("greedy", "group_limited_greedy")
_GATING_FUNCTIONS = (*SOFTMAX, SIGMOID)
_LOG_MULTIPLIER = "scaling.yarn_log_multiplier"

_SIZES = (
    "moe_intermediate_size", "n_shared_experts", "num_experts_per_tok", "kv_lora_rank", "qk_nope_head_dim",
    "qk_rope_head_dim", "v_head_dim",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekConfig(DecoderConfig):
    """DeepSeek-V2 and V3, and the models that share their architectures.

    All heads make their keys and values of one latent per token, which is what the cache holds: `num_kv_heads` is 1.

    Attributes:
        activation: name of the feed-forward layers' activation function.
        rms_norm_eps: added to the mean square in the norms between layers.
        attention_bias: whether the projections from and to the hidden state have a bias, but that of the queries.
        mlp_bias: whether the feed-forward layers that are no experts have one.
        query_rank: numbers per token of the latent of queries; None without one.
        latent_size: numbers per token of the latent of keys and values.
        rotary_dim: numbers per head of queries, and of the one key for all heads, that are rotated.
        value_dim: numbers per head of values.
        scale: factor on q·k.
        routing: how the experts of a token are chosen.
        has_correction: whether the router has a correction of its scores.
        expert_size: numbers per row inside an expert.
        num_shared_experts: experts that every token goes through besides.
        num_dense_layers: the first layers, so many, have no experts.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        rope_parameters: as in the Hugging Face config.
    """

    activation: str
    rms_norm_eps: float
    attention_bias: bool
    mlp_bias: bool
    query_rank: int | None
    latent_size: int
    rotary_dim: int
    value_dim: int
    scale: float
    routing: Routing
    has_correction: bool
    expert_size: int
    num_shared_experts: int
    num_dense_layers: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `DeepseekV2HuggingFaceConfig`, a `DeepseekV3HuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: the config asks for something that these models do not have.
        """
        _check(config)
        rope, is_v3 = config.rope_parameters, config.model_type == "deepseek_v3"
        head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=1,
            head_dim=head_dim,
            max_seq_len=max_rotary_length(rope, config.max_position_embeddings),
            max_shareable_prompt=max_shareable_length(rope, config.max_position_embeddings),
            activation=config.hidden_act,
            rms_norm_eps=config.rms_norm_eps,
            attention_bias=config.attention_bias,
            mlp_bias=not is_v3 and config.mlp_bias,
            query_rank=config.q_lora_rank,
            latent_size=config.kv_lora_rank,
            rotary_dim=config.qk_rope_head_dim,
            value_dim=config.v_head_dim,
            scale=head_dim**-0.5 * _temperature(rope),
            routing=_routing_v3(config) if is_v3 else _routing_v2(config),
            has_correction=is_v3,
            expert_size=config.moe_intermediate_size,
            num_shared_experts=config.n_shared_experts,
            num_dense_layers=config.first_k_dense_replace,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=rope,
        )

    @property
    def attention(self) -> AttentionSpec:
        """Each head's queries see the latents and the rotated key of all heads, and get latents."""
        return AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=1,
            head_dim=self.latent_size + self.rotary_dim,
            scale=self.scale,
            value_dim=self.latent_size,
            values_in_keys=True,
        )

    @property
    def value_heads(self) -> Heads:
        """The heads of values, as a dimension that devices can divide."""
        return Heads(self.num_heads, 1, self.value_dim)


def _temperature(rope: Mapping[str, Any]) -> float:
    """Returns YaRN's factor on the scores, which DeepSeek has besides that on the rotated numbers."""
    weight = rope.get("mscale_all_dim")
    if rope.get("rope_type", "default") == "default" or not weight:
        return 1.0
    factor = rope.get("factor") or 1.0
    return 1.0 if factor <= 1 else float(0.1 * weight * math.log(factor) + 1.0) ** 2


def _routing_v2(config: PretrainedConfig) -> Routing:
    has_groups = config.topk_method == "group_limited_greedy"
    return Routing(
        num_experts=config.n_routed_experts,
        top_k=config.num_experts_per_tok,
        scale=config.routed_scaling_factor,
        num_groups=(config.n_group or 0) if has_groups else 1,
        num_chosen_groups=(config.topk_group or 0) if has_groups else 1,
    )


def _routing_v3(config: PretrainedConfig) -> Routing:
    return Routing(
        num_experts=config.n_routed_experts,
        top_k=config.num_experts_per_tok,
        scores="sigmoid",
        normalize=bool(config.norm_topk_prob),
        added_to_sum=1e-20,
        scale=config.routed_scaling_factor,
        num_groups=config.n_group or 0,
        num_chosen_groups=config.topk_group or 0,
        group_best=2,
    )


def _check(config: PretrainedConfig) -> None:
    """Refuses by name what these models do not have, or what is read in different ways."""
    is_v3 = config.model_type == "deepseek_v3"
    methods = ("noaux_tc",) if is_v3 else _METHODS_V2
    allowed: dict[str, tuple[object, tuple[object, ...]]] = {
        "hidden_act": (config.hidden_act, tuple(sorted(ACTIVATIONS))),
        "topk_method": (getattr(config, "topk_method", methods[0]), methods),
        "scoring_func": (getattr(config, "scoring_func", None), (None, "sigmoid" if is_v3 else "softmax")),
        "moe_layer_freq": (getattr(config, "moe_layer_freq", 1), (1,)),
        "num_key_value_heads": (config.num_key_value_heads, (config.num_attention_heads,)),
        "partial_rotary_factor": (config.rope_parameters.get("partial_rotary_factor"), (None, 1)),
    }
    if not is_v3:  # transformers does not normalize, and DeepSeek's own code leaves the factor out then
        allowed["norm_topk_prob"] = (config.norm_topk_prob, (None, False))
    for name, (found, values) in allowed.items():
        if found not in values:
            raise UnsupportedModelError(f"the config's {name} is none that DeepSeek has", found=found, allowed=values)
    for name in (*_SIZES, *(("q_lora_rank",) if config.q_lora_rank is not None else ())):
        size = getattr(config, name)
        if size is None or size < 1:
            raise UnsupportedModelError(f"the config's {name} is not positive", found=size, allowed="at least 1")
    if config.first_k_dense_replace is None:
        raise UnsupportedModelError("the config's first_k_dense_replace is missing", found=None, allowed="a number")


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for. What its metadata leaves open is as in llama.cpp.

    Files of before May 2025 have the sizes of a head under `key_length` and `value_length`; later ones have those of
    the latents there, and a head's under names of their own. YaRN's `mscale` is not in a file: it is `mscale_all_dim`
    in all of DeepSeek's models.

    Raises:
        CorruptCheckpointError: a key that every DeepSeek file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: the file rotates, scales or chooses in a way that no config.json can say.
    """
    metadata, decoder, model_type = file.metadata, GGUFDecoder(file, _GGUF), model_type_of(file)
    _check_gguf(metadata)
    rotary_dim = decoder.size("rope.dimension_count")
    suffix = "_mla" if f"{_GGUF}.attention.key_length_mla" in metadata else ""
    config = decoder.config(rotary_dim=rotary_dim, rope_keys=(_LOG_MULTIPLIER,))
    del config["head_dim"]
    if (weight := metadata.get(f"{_GGUF}.rope.{_LOG_MULTIPLIER}")) and config["rope_parameters"]["rope_type"] == "yarn":
        config["rope_parameters"] |= {"mscale": 10 * weight, "mscale_all_dim": 10 * weight}
    num_groups = decoder.size("expert_group_count", 1)
    num_layers = config["num_hidden_layers"] - decoder.num_further_layers()
    return {
        **config,
        "model_type": model_type,
        "architectures": [_ARCHITECTURES[model_type]],
        "num_hidden_layers": num_layers,
        "num_key_value_heads": config["num_attention_heads"],
        "kv_lora_rank": decoder.size("attention.kv_lora_rank"),
        "q_lora_rank": metadata.get(f"{_GGUF}.attention.q_lora_rank"),
        "qk_nope_head_dim": decoder.size(f"attention.key_length{suffix}") - rotary_dim,
        "qk_rope_head_dim": rotary_dim,
        "v_head_dim": decoder.size(f"attention.value_length{suffix}"),
        "n_routed_experts": decoder.size("expert_count"),
        "num_experts_per_tok": decoder.size("expert_used_count"),
        "n_shared_experts": decoder.size("expert_shared_count"),
        "moe_intermediate_size": decoder.size("expert_feed_forward_length"),
        "first_k_dense_replace": decoder.number("leading_dense_block_count", most=num_layers),
        "routed_scaling_factor": metadata.get(f"{_GGUF}.expert_weights_scale") or 1.0,  # 0 is none
        "norm_topk_prob": metadata.get(f"{_GGUF}.expert_weights_norm", False),
        "n_group": num_groups,
        "topk_group": decoder.size("expert_group_used_count", 1),
        "topk_method": "noaux_tc" if model_type == "deepseek_v3" else _METHODS_V2[num_groups > 1],
        "attention_bias": "blk.0.attn_output.bias" in file.weights,
        "mlp_bias": any(f"blk.0.{layer}.bias" in file.weights for layer in ("ffn_down", "ffn_down_shexp")),
    }


def _check_gguf(metadata: Mapping[str, Any]) -> None:
    gating = metadata.get(f"{_GGUF}.expert_gating_func", 0)
    if gating not in _GATING_FUNCTIONS:
        raise UnsupportedModelError(
            "the GGUF file's router makes scores in an unknown way", found=gating, allowed=_GATING_FUNCTIONS
        )
    if scale := metadata.get(f"{_GGUF}.attention.temperature_scale"):
        raise UnsupportedModelError("the GGUF file scales queries by their positions, as no DeepSeek does", found=scale)
