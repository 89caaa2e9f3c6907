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

__all__ = ["DeepseekConfig"]

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
        least_sum=1e-20,
        scale=config.routed_scaling_factor,
        num_groups=config.n_group or 0,
        num_chosen_groups=config.topk_group or 0,
        group_best=2,
    )


def _check(config: PretrainedConfig) -> None:
    """Refuses by name what these models do not have, or what is read in different ways."""
    is_v3 = config.model_type == "deepseek_v3"
    methods = ("noaux_tc",) if is_v3 else ("greedy", "group_limited_greedy")
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
