"""The typed config of a Granite 4 model, read from a Hugging Face config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig, known_layer_types
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import (
    Mamba2Sizes,
    Routing,
    known_activation,
    max_rotary_length,
    max_shareable_length,
    rope_of_whole_heads,
)
from pipezoo_core.recurrence import StateSpec
from pipezoo_granite.mamba import mamba_sizes

__all__ = ["GraniteConfig"]

_HAS_STATE = {"full_attention": False, "linear_attention": True}
_IS_ROTATED = {"rope": True, "nope": False, None: False}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraniteConfig(DecoderConfig):
    """Granite 4: Mamba-2 in most layers and attention in the others, or attention in all; with experts or without.

    `intermediate_size` is that of the feed-forward layer which all tokens go through.

    Attributes:
        activation: name of the feed-forward layers' activation function.
        rms_norm_eps: added to the mean square in the norms.
        attention_bias: whether q, k, v and o have a bias.
        embedding_scale: factor on the embedding's rows.
        residual_scale: factor on what a layer adds.
        attention_scale: factor on the scores.
        logit_scale: factor on the logits.
        has_state: per layer, whether it is a Mamba; the others are attention.
        mamba: the sizes of these layers; None where there are none.
        routing: of the experts; None for none.
        expert_size: numbers per row inside an expert.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        rope_parameters: as in the Hugging Face config; None for attention that knows no positions.
    """

    activation: str
    rms_norm_eps: float
    attention_bias: bool
    embedding_scale: float
    residual_scale: float
    attention_scale: float
    logit_scale: float
    has_state: tuple[bool, ...]
    mamba: Mamba2Sizes | None
    routing: Routing | None
    expert_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any] | None

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `GraniteHuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: a layer's kind, the activation or the kind of positions is unknown, a part of each
                head alone is rotated, or numbers are none or do not fit.
        """
        has_state = tuple(_HAS_STATE[kind] for kind in known_layer_types(config.layer_types, _HAS_STATE))
        rope, length = _rope(config), config.max_position_embeddings
        if any(has_state) and config.hidden_act not in ("silu", "swish"):  # it is the convolution's, too
            raise UnsupportedModelError(
                "the config has another activation function than any model with Mamba layers",
                found=config.hidden_act,
                allowed="silu",
            )
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.shared_intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            max_seq_len=length if rope is None else max_rotary_length(rope, length),
            max_shareable_prompt=None if rope is None else max_shareable_length(rope, length),
            activation=known_activation(config.hidden_act),
            rms_norm_eps=config.rms_norm_eps,
            attention_bias=config.attention_bias,
            embedding_scale=_number(config, "embedding_multiplier"),
            residual_scale=_number(config, "residual_multiplier"),
            attention_scale=_number(config, "attention_multiplier"),
            logit_scale=1 / _number(config, "logits_scaling"),
            has_state=has_state,
            mamba=mamba_sizes(config) if any(has_state) else None,
            routing=_routing(config),
            expert_size=config.intermediate_size,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=length,
            rope_parameters=rope,
        )

    @property
    def attention(self) -> AttentionSpec:
        """Causal attention with grouped heads and a scale of its own."""
        return replace(super(GraniteConfig, self).attention, scale=self.attention_scale)

    @property
    def layers(self) -> tuple[AttentionSpec | StateSpec, ...]:
        """Attention, or the state of a Mamba."""
        return tuple(
            self.mamba.state if has_state and self.mamba is not None else self.attention for has_state in self.has_state
        )


def _rope(config: PretrainedConfig) -> Mapping[str, Any] | None:
    kind = config.position_embedding_type
    if kind not in _IS_ROTATED:
        raise UnsupportedModelError(
            "the config's position_embedding_type is unknown", found=kind, allowed="rope, nope, or none"
        )
    return rope_of_whole_heads(config.rope_parameters) if _IS_ROTATED[kind] else None


def _number(config: PretrainedConfig, name: str) -> float:
    found = getattr(config, name)
    if found is None or not math.isfinite(found) or found <= 0:
        raise UnsupportedModelError(
            f"the config's {name} is no positive number", found=repr(found), allowed="a finite number above 0"
        )
    return float(found)


def _routing(config: PretrainedConfig) -> Routing | None:
    if not config.num_local_experts:
        return None
    if config.intermediate_size < 1:
        raise UnsupportedModelError(
            "the config's intermediate_size, that of an expert, is not positive",
            found=config.intermediate_size,
            allowed="at least 1",
        )
    return Routing(
        num_experts=config.num_local_experts, top_k=config.num_experts_per_tok or 0, scores="softmax_of_chosen"
    )
