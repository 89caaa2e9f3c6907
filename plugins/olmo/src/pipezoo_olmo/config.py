"""The typed config of an OLMo model, read from a Hugging Face config or from a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig, known_layer_types
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import known_activation, max_rotary_length, max_shareable_length, rope_of_whole_heads
from pipezoo_core.weights import GGUFDecoder, GGUFFile

__all__ = ["OlmoConfig", "config_from_gguf"]

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
        is_first, is_third = config.model_type == "olmo", config.model_type == "olmo3"
        kinds = known_layer_types(config.layer_types, _KINDS) if is_third else (_FULL,) * config.num_hidden_layers
        rope_of_kinds = config.rope_parameters if is_third else {_FULL: config.rope_parameters}
        ropes: list[Mapping[str, Any]] = []
        for rope in (rope_of_kinds[kind] for kind in kinds):
            if rope not in ropes:
                ropes.append(rope_of_whole_heads(rope))
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
            activation=known_activation(config.hidden_act),
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
        return tuple(replace(self.attention, sliding_window=window) for window in self.sliding_windows)


def _window(config: PretrainedConfig) -> int:
    window: int | None = config.sliding_window
    if window is None or window < 1:
        raise UnsupportedModelError("the config's sliding_window is no number above 0", found=window)
    return window


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for. What its metadata leaves open is as in llama.cpp.

    OLMo 3's files call themselves `olmo2`, and have windows.

    Raises:
        CorruptCheckpointError: a key that every OLMo file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: the file rotates or scales RoPE in a way that no config.json can say, or has another
            epsilon in its norms than OLMo.
    """
    architecture = file.metadata["general.architecture"]
    decoder = GGUFDecoder(file, architecture)
    model_type = "olmo3" if "olmo2.attention.sliding_window" in file.metadata else architecture
    config = {
        "model_type": model_type,
        "architectures": [f"{model_type.capitalize()}ForCausalLM"],
        **decoder.config(has_rms_norm=model_type != "olmo"),
        "attention_bias": "blk.0.attn_q.bias" in file.weights,
    }
    if model_type == "olmo":
        eps = decoder.get("attention.layer_norm_epsilon")
        if not math.isclose(eps, _LAYER_NORM_EPS, rel_tol=1e-6):
            raise UnsupportedModelError("the GGUF file has norms that OLMo has not", found=eps, allowed=_LAYER_NORM_EPS)
        config["clip_qkv"] = file.metadata.get("olmo.attention.clamp_kqv") or None  # 0 is none, too
    elif model_type == "olmo3":
        local = {"rope_type": "default", "rope_theta": config["rope_parameters"]["rope_theta"]}
        config |= {
            "sliding_window": decoder.size("attention.sliding_window"),
            "layer_types": _kinds_of_gguf(file, config["num_hidden_layers"]),
            "rope_parameters": {_FULL: config["rope_parameters"], _SLIDING: local},
        }
    return config


def _kinds_of_gguf(file: GGUFFile, num_layers: int) -> list[str]:
    """Returns which layers have a window: as a list says, or all but every fourth."""
    pattern = file.metadata.get("olmo2.attention.sliding_window_pattern", 4)
    if isinstance(pattern, list):
        return [_SLIDING if has_window else _FULL for has_window in pattern]
    return [_SLIDING if (i + 1) % pattern else _FULL for i in range(num_layers)]
