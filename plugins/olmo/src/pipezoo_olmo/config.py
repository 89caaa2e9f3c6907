"""The typed config of an OLMo model, read from a Hugging Face config or from a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import ACTIVATIONS, max_rotary_length, max_shareable_length

__all__ = ["OlmoConfig"]

_FULL, _SLIDING = _KINDS = ("full_attention", "sliding_attention")
_LAYER_NORM_EPS = 1e-5  # of OLMo, whose config.json has none


@dataclass(frozen=True, slots=True, kw_only=True)
class OlmoConfig(DecoderConfig):
    """OLMo, OLMo 2 and OLMo 3, and the models that share their architectures.

    Attributes:
        is_first: whether it is OLMo, whose norms come before the layers and have no weights; later ones have them
            behind the layers, and normalize q and k.
        activation: name of the feed-forward layer's activation function.
        norm_eps: added to the variance, or to the mean square, in the norms.
        attention_bias: whether q, k, v and o have a bias.
        clip_qkv: q, k and v lie between this and its negative; None for no bound.
        sliding_windows: per layer, how many tokens a query sees, itself included; None for all.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        ropes: the rotations that layers have, each as `rope_parameters` of a Hugging Face config.
        rope_of_layers: per layer, which of them it has.
    """

    is_first: bool
    activation: str
    norm_eps: float
    attention_bias: bool
    clip_qkv: float | None
    sliding_windows: tuple[int | None, ...]
    tie_word_embeddings: bool
    max_position_embeddings: int
    ropes: tuple[Mapping[str, Any], ...]
    rope_of_layers: tuple[int, ...]

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads one of the plugin's config classes, or transformers' own.

        Raises:
            UnsupportedModelError: the config asks for what the model is not.
        """
        if config.hidden_act not in ACTIVATIONS:
            raise UnsupportedModelError(
                "the activation function is unknown", found=config.hidden_act, allowed=sorted(ACTIVATIONS)
            )
        is_first, is_third = config.model_type == "olmo", config.model_type == "olmo3"
        kinds = _kinds(config.layer_types) if is_third else (_FULL,) * config.num_hidden_layers
        rope_of_kinds = config.rope_parameters if is_third else {_FULL: config.rope_parameters}
        ropes: list[Mapping[str, Any]] = []
        for rope in (rope_of_kinds[kind] for kind in kinds):
            if rope not in ropes:
                ropes.append(_whole_heads(rope))
        length = config.max_position_embeddings
        shareable = [most for rope in ropes if (most := max_shareable_length(rope, length)) is not None]
        clip = config.clip_qkv if is_first else None
        if clip is not None and not clip > 0:
            raise UnsupportedModelError("the config's clip_qkv is no number above 0", found=clip)
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            max_seq_len=min((max_rotary_length(rope, length) for rope in ropes), default=length),
            max_shareable_prompt=min(shareable, default=None),
            is_first=is_first,
            activation=config.hidden_act,
            norm_eps=_LAYER_NORM_EPS if is_first else config.rms_norm_eps,
            attention_bias=config.attention_bias,
            clip_qkv=clip,
            sliding_windows=tuple(_window(config) if kind == _SLIDING else None for kind in kinds),
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=length,
            ropes=tuple(ropes),
            rope_of_layers=tuple(ropes.index(rope_of_kinds[kind]) for kind in kinds),
        )

    @property
    def layers(self) -> tuple[AttentionSpec, ...]:
        """Causal attention with grouped heads, each layer over its own window."""
        full = AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
        )
        return tuple(replace(full, sliding_window=window) for window in self.sliding_windows)


def _kinds(layer_types: list[str]) -> tuple[str, ...]:
    unknown = set(layer_types) - {*_KINDS}
    if unknown:
        raise UnsupportedModelError(
            "the config's layer_types are not what its layers can be", found=sorted(unknown), allowed=_KINDS
        )
    return tuple(layer_types)  # as many as there are layers: every PretrainedConfig sees to that


def _whole_heads(rope: Mapping[str, Any]) -> Mapping[str, Any]:
    part = rope.get("partial_rotary_factor")
    if part not in (None, 1) and rope["rope_type"] != "proportional":
        raise UnsupportedModelError("OLMo rotates heads whole", found=f"partial_rotary_factor {part}", allowed="1")
    return rope


def _window(config: PretrainedConfig) -> int:
    window: int | None = config.sliding_window
    if window is None or window < 1:
        raise UnsupportedModelError("the config's sliding_window is no number above 0", found=window)
    return window
