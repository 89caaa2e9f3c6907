"""The typed config of a Gemma model, read from a Hugging Face config or from a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig, known_layer_types
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import known_activation, max_rotary_length, max_shareable_length, rope_of_whole_heads
from pipezoo_core.weights import GGUFDecoder, GGUFFile

__all__ = ["GemmaConfig", "config_from_gguf"]

_FULL, _SLIDING = _KINDS = ("full_attention", "sliding_attention")
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}  # by which llama.cpp knows the models that are scaled otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaConfig(DecoderConfig):
    """Gemma, Gemma 2, the text part of Gemma 3, and the models that share their architectures.

    Attributes:
        activation: name of the feed-forward layer's activation function.
        rms_norm_eps: added to the mean square in the norms.
        attention_bias: whether q, k, v and o have a bias.
        qk_norm: whether each head of q and k is normalized.
        post_norms: whether what the attention and the feed-forward layer give is normalized before it is added.
        attention_scale: factor on the scores.
        attention_softcap: bound of the scores; None for none.
        logit_softcap: bound of the logits; None for none.
        sliding_windows: per layer, how many tokens a query sees, itself included; None for all.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        ropes: the rotations that layers have, each as `rope_parameters` of a Hugging Face config.
        rope_of_layers: per layer, which of them it has.
    """

    activation: str
    rms_norm_eps: float
    attention_bias: bool
    qk_norm: bool
    post_norms: bool
    attention_scale: float
    attention_softcap: float | None
    logit_softcap: float | None
    sliding_windows: tuple[int | None, ...]
    tie_word_embeddings: bool
    max_position_embeddings: int
    ropes: tuple[Mapping[str, Any], ...]
    rope_of_layers: tuple[int, ...]

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads one of the plugin's config classes, or transformers' own.

        Raises:
            UnsupportedModelError: the config asks for what the model is not, or for what the reference implementation
                leaves out.
        """
        is_first, is_third = config.model_type == "gemma", config.model_type == "gemma3_text"
        activation = config.hidden_act if is_first else config.hidden_activation
        if is_third and config.attn_logit_softcapping is not None:
            raise UnsupportedModelError(
                "the scores of Gemma 3 have no bound, which its config asks for",
                found=f"attn_logit_softcapping {config.attn_logit_softcapping}",
                allowed="none",
            )
        kinds = (_FULL,) * config.num_hidden_layers if is_first else known_layer_types(config.layer_types, _KINDS)
        rope_of_kinds = config.rope_parameters if is_third else dict.fromkeys(_KINDS, config.rope_parameters)
        ropes: list[Mapping[str, Any]] = []
        for rope in (rope_of_kinds[kind] for kind in kinds):
            if rope not in ropes:
                ropes.append(rope_of_whole_heads(rope))
        length = config.max_position_embeddings
        shareable = [most for rope in ropes if (most := max_shareable_length(rope, length)) is not None]
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_seq_len=min((max_rotary_length(rope, length) for rope in ropes), default=length),
            max_shareable_prompt=min(shareable, default=None),
            activation=known_activation(activation),
            rms_norm_eps=config.rms_norm_eps,
            attention_bias=config.attention_bias,
            qk_norm=is_third,
            post_norms=not is_first,
            attention_scale=(config.head_dim if is_first else _positive(config, "query_pre_attn_scalar")) ** -0.5,
            attention_softcap=None if is_first else _softcap(config, "attn_logit_softcapping"),
            logit_softcap=None if is_first else _softcap(config, "final_logit_softcapping"),
            sliding_windows=tuple(_positive(config, "sliding_window") if kind == _SLIDING else None for kind in kinds),
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
            scale=self.attention_scale,
            softcap=self.attention_softcap,
        )
        return tuple(replace(full, sliding_window=window) for window in self.sliding_windows)


def _softcap(config: PretrainedConfig, name: str) -> float | None:
    return None if getattr(config, name) is None else float(_positive(config, name))


def _positive(config: PretrainedConfig, name: str) -> Any:
    value = getattr(config, name)
    if value is None or not value > 0:
        raise UnsupportedModelError(f"the config's {name} is no number above 0", found=value)
    return value


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for. What its metadata leaves open is as in llama.cpp.

    Raises:
        CorruptCheckpointError: a key that every Gemma file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: the file rotates or scales RoPE in a way that no config.json can say.
    """
    architecture = file.metadata["general.architecture"]
    decoder = GGUFDecoder(file, architecture)
    config = {
        "model_type": architecture,
        "architectures": [f"{architecture.capitalize()}ForCausalLM"],
        **decoder.config(),
        "attention_bias": "blk.0.attn_q.bias" in file.weights,
    }
    if architecture == "gemma2":
        config |= {
            **_alternating(decoder, config, every=2, window=4096),
            "attn_logit_softcapping": file.metadata.get("gemma2.attn_logit_softcapping", 50.0),
            "final_logit_softcapping": file.metadata.get("gemma2.final_logit_softcapping", 30.0),
        }
    elif architecture == "gemma3":
        every = 6 if "gemma3.attention.sliding_window" in file.metadata else 1
        local = {"rope_type": "default", "rope_theta": 10000.0}
        config |= {
            **_alternating(decoder, config, every=every, window=1),
            "model_type": "gemma3_text",
            "rope_parameters": {_FULL: config["rope_parameters"], _SLIDING: local},
            "final_logit_softcapping": file.metadata.get("gemma3.final_logit_softcapping") or None,  # 0 is none, too
        }
    return config


def _alternating(decoder: GGUFDecoder, config: Mapping[str, Any], *, every: int, window: int) -> dict[str, Any]:
    """Returns which layers have a window, and what the scores are scaled by, which llama.cpp knows by the size."""
    num_layers, head_dim = config["num_hidden_layers"], config["head_dim"]
    every = decoder.size("attention.sliding_window_pattern", every)
    if num_layers == _LAYERS_OF_27B[config["model_type"]]:
        head_dim = config["hidden_size"] // config["num_attention_heads"]
    return {
        "sliding_window": decoder.size("attention.sliding_window", window),
        "layer_types": [_SLIDING if (i + 1) % every else _FULL for i in range(num_layers)],
        "query_pre_attn_scalar": head_dim,
    }
