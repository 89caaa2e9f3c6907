"""The typed config of a gpt-oss model, read from a Hugging Face config or from a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig, known_layer_types
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import ClampedGate, Routing, max_rotary_length, max_shareable_length
from pipezoo_core.weights import GGUFDecoder, GGUFFile

__all__ = ["GptOssConfig", "config_from_gguf"]

_HAS_WINDOW = {"full_attention": False, "sliding_attention": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class GptOssConfig(DecoderConfig):
    """gpt-oss-20b and gpt-oss-120b, and the models that share their architecture.

    Attributes:
        routing: how the experts of a token are chosen.
        gate: what becomes of an expert's gate and up.
        rms_norm_eps: added to the mean square in the norms.
        attention_bias: whether q, k, v and o have a bias.
        sliding_windows: per layer, how many tokens a query sees, itself included; None for all.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        rope_parameters: as in the Hugging Face config.
    """

    routing: Routing
    gate: ClampedGate
    rms_norm_eps: float
    attention_bias: bool
    sliding_windows: tuple[int | None, ...]
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `GptOssHuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: a layer's kind is unknown, a window is missing, there are too few experts, or a part
                of each head alone is rotated.
        """
        rope = config.rope_parameters
        if rope.get("partial_rotary_factor") not in (None, 1):
            raise UnsupportedModelError(
                "the model rotates only a part of each head, which gpt-oss does not",
                found=rope["partial_rotary_factor"],
                allowed=1,
            )
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_seq_len=max_rotary_length(rope, config.max_position_embeddings),
            max_shareable_prompt=max_shareable_length(rope, config.max_position_embeddings),
            routing=Routing(
                num_experts=config.num_local_experts,
                top_k=config.num_experts_per_tok,
                scores="softmax_of_chosen",
            ),
            gate=ClampedGate(config.swiglu_limit, config.swiglu_alpha),
            rms_norm_eps=config.rms_norm_eps,
            attention_bias=config.attention_bias,
            sliding_windows=_sliding_windows(config),
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=rope,
        )

    @property
    def layers(self) -> tuple[AttentionSpec, ...]:
        """Causal attention with grouped heads and sinks, each layer over its own window."""
        full = replace(self.attention, has_sinks=True)
        return tuple(replace(full, sliding_window=window) for window in self.sliding_windows)


def _sliding_windows(config: PretrainedConfig) -> tuple[int | None, ...]:
    kinds, window = known_layer_types(config.layer_types, _HAS_WINDOW), config.sliding_window
    has_windows = any(map(_HAS_WINDOW.__getitem__, kinds))
    if has_windows and (window is None or window < 1):
        raise UnsupportedModelError(
            "layers have a window in the config's layer_types, and it does not say how many tokens that shows",
            found=f"sliding_window {window}",
            allowed="a sliding_window above 0",
        )
    return tuple(window if _HAS_WINDOW[kind] else None for kind in kinds)


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for. What its metadata leaves open is as in OpenAI's models.

    That are the gate's numbers, the kinds of the layers, and that YaRN's bounds are not rounded.

    Raises:
        CorruptCheckpointError: a key that every gpt-oss file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: the file rotates or scales RoPE in a way that no config.json can say.
    """
    decoder = GGUFDecoder(file, file.metadata["general.architecture"])
    config = decoder.config()
    config["rope_parameters"]["truncate"] = False
    return {
        **config,
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "intermediate_size": decoder.size("expert_feed_forward_length"),
        "num_local_experts": decoder.size("expert_count"),
        "num_experts_per_tok": decoder.size("expert_used_count"),
        "sliding_window": decoder.size("attention.sliding_window"),
        "attention_bias": "blk.0.attn_q.bias" in file.weights,
    }
