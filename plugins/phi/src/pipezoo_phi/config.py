"""The typed configs of Phi and Phi-3, read from Hugging Face configs or from GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import known_activation, max_rotary_length, max_shareable_length
from pipezoo_core.weights import GGUFDecoder, GGUFFile, model_type_of

__all__ = ["Phi3Config", "PhiConfig", "config_from_gguf"]

_PHI3_ROPE_TYPES = ("default", "longrope")


@dataclass(frozen=True, slots=True, kw_only=True)
class _RotaryConfig(DecoderConfig):
    """What both have.

    Attributes:
        activation: name of the feed-forward layer's activation function.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        rope_parameters: as in the Hugging Face config, `partial_rotary_factor` included.
    """

    activation: str
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhiConfig(_RotaryConfig):
    """Phi-1, Phi-1.5 and Phi-2.

    Attributes:
        layer_norm_eps: added to the variance in the norms.
        qk_layernorm: whether each head of queries and keys is normalized.
    """

    layer_norm_eps: float
    qk_layernorm: bool

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `PhiHuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: the activation function is unknown, or RoPE is `proportional` on a part of each head.
        """
        rope = config.rope_parameters
        part = rope.get("partial_rotary_factor")
        if rope.get("rope_type") == "proportional" and part not in (None, 1):
            raise UnsupportedModelError(
                "the config has proportional RoPE, and rotates a part of each head", found=part, allowed=1
            )
        return cls(**_common(config), layer_norm_eps=config.layer_norm_eps, qk_layernorm=config.qk_layernorm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phi3Config(_RotaryConfig):
    """Phi-3, Phi-3.5 and Phi-4.

    Attributes:
        rms_norm_eps: added to the mean square in the norms.
        sliding_window: how many tokens a query sees, itself included; None for all.
    """

    rms_norm_eps: float
    sliding_window: int | None

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `Phi3HuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: the activation function or the kind of RoPE is unknown, or the window shows no token.
        """
        rope_type, window = config.rope_parameters.get("rope_type", "default"), config.sliding_window
        if rope_type not in _PHI3_ROPE_TYPES:
            raise UnsupportedModelError("Phi-3 has no such RoPE", found=rope_type, allowed=_PHI3_ROPE_TYPES)
        if window is not None and window < 1:
            raise UnsupportedModelError(
                "the config's sliding_window shows no token", found=window, allowed="at least 1, or null for all"
            )
        return cls(**_common(config), rms_norm_eps=config.rms_norm_eps, sliding_window=window)

    @property
    def attention(self) -> AttentionSpec:
        """Causal attention with grouped heads, over a window if there is one."""
        return AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            sliding_window=self.sliding_window,
        )


def _common(config: PretrainedConfig) -> dict[str, Any]:
    rope, length = config.rope_parameters, config.max_position_embeddings
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "max_seq_len": max_rotary_length(rope, length),
        "max_shareable_prompt": max_shareable_length(rope, length),
        "activation": known_activation(config.hidden_act),
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": length,
        "rope_parameters": rope,
    }


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for. Phi's files call themselves `phi2`.

    Of Phi-3 a window of 0 is none. llama.cpp reads over the window; here it is what the file says.

    Raises:
        CorruptCheckpointError: a key that every such file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: the file scales RoPE in a way that no config.json can say.
    """
    decoder = GGUFDecoder(file, file.metadata["general.architecture"])
    if model_type_of(file) == "phi":
        config = decoder.config(has_rms_norm=False, rotates_part=True)
        own = {"model_type": "phi", "layer_norm_eps": decoder.get("attention.layer_norm_epsilon")}
        return {"architectures": ["PhiForCausalLM"], **config, **own}
    config = decoder.config(rotates_part=True)
    window = file.metadata.get("phi3.attention.sliding_window") or None
    original = file.metadata.get("phi3.rope.scaling.original_context_length", config["max_position_embeddings"])
    return {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        **config,
        "sliding_window": window,
        "original_max_position_embeddings": original,
    }
