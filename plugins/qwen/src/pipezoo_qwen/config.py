"""The typed config of a Qwen model, read from a Hugging Face config or from a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig, known_layer_types
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import Routing, known_activation, max_rotary_length, max_shareable_length, rope_of_whole_heads
from pipezoo_core.weights import GGUFDecoder, GGUFFile, model_type_of

__all__ = ["QwenConfig", "config_from_gguf"]

_ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
_HAS_WINDOW = {"full_attention": False, "sliding_attention": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenMixture:
    """The mixtures of experts that take the place of feed-forward layers in Qwen2-MoE and Qwen3-MoE.

    Attributes:
        layers: which layers have one.
        routing: how a token's experts are chosen.
        intermediate_size: of each expert.
        shared_intermediate_size: of the expert that all tokens go to; None for none.
    """

    layers: frozenset[int]
    routing: Routing
    intermediate_size: int
    shared_intermediate_size: int | None

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        """Reads a `Qwen2MoeHuggingFaceConfig`, a `Qwen3MoeHuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: there are not as many experts as a token goes to, or the step is none.
        """
        step = config.decoder_sparse_step
        if step < 1:
            raise UnsupportedModelError("the config's decoder_sparse_step is none", found=step, allowed="at least 1")
        mixed = set(range(step - 1, config.num_hidden_layers, step)) - set(config.mlp_only_layers)
        return cls(
            layers=frozenset(mixed),
            routing=Routing(
                num_experts=config.num_experts, top_k=config.num_experts_per_tok, normalize=config.norm_topk_prob
            ),
            intermediate_size=config.moe_intermediate_size,
            shared_intermediate_size=getattr(config, "shared_expert_intermediate_size", None),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenConfig(DecoderConfig):
    """Qwen2, Qwen2.5, QwQ and Qwen3, and the models that share their architecture.

    Attributes:
        activation: name of the feed-forward layer's activation function.
        rms_norm_eps: added to the mean square in the norms.
        qkv_bias: whether q, k and v have a bias.
        output_bias: whether o has one.
        qk_norm: whether each head of q and k is normalized.
        sliding_windows: per layer, how many tokens a query sees, itself included; None for all.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        rope_parameters: as in the Hugging Face config.
        mixture: its mixtures of experts; None for none.
    """

    activation: str
    rms_norm_eps: float
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]
    mixture: QwenMixture | None

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `Qwen2HuggingFaceConfig`, a `Qwen3HuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: the activation function or a layer's kind is unknown, a window is missing,
                or a part of each head alone is rotated.
        """
        rope, is_qwen3 = rope_of_whole_heads(config.rope_parameters), config.model_type.startswith("qwen3")
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            max_seq_len=max_rotary_length(rope, config.max_position_embeddings),
            max_shareable_prompt=max_shareable_length(rope, config.max_position_embeddings),
            activation=known_activation(config.hidden_act),
            rms_norm_eps=config.rms_norm_eps,
            qkv_bias=config.attention_bias if is_qwen3 else getattr(config, "qkv_bias", True),
            output_bias=is_qwen3 and config.attention_bias,
            qk_norm=is_qwen3,
            sliding_windows=_sliding_windows(config),
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=rope,
            mixture=QwenMixture.of(config) if config.model_type.endswith("_moe") else None,
        )

    @property
    def layers(self) -> tuple[AttentionSpec, ...]:
        """Causal attention with grouped heads, each layer over its own window."""
        return tuple(replace(self.attention, sliding_window=window) for window in self.sliding_windows)


def _sliding_windows(config: PretrainedConfig) -> tuple[int | None, ...]:
    if config.model_type == "qwen3_moe":  # has no layer_types
        kind = "full_attention" if config.sliding_window is None else "sliding_attention"
        kinds = (kind,) * config.num_hidden_layers
    else:
        kinds = known_layer_types(config.layer_types, _HAS_WINDOW)
    if not any(map(_HAS_WINDOW.__getitem__, kinds)):
        return (None,) * len(kinds)
    window = config.sliding_window
    if window is None or window < 1:
        raise UnsupportedModelError(
            "layers have a window in the config's layer_types, and it does not say how many tokens that shows",
            found=f"sliding_window {window}, use_sliding_window {config.use_sliding_window}",
            allowed="use_sliding_window, and a sliding_window above 0",
        )
    return tuple(window if _HAS_WINDOW[kind] else None for kind in kinds)


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for. What its metadata leaves open is as in llama.cpp.

    Raises:
        CorruptCheckpointError: a key that every Qwen file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: the file rotates or scales RoPE in a way that no config.json can say.
    """
    architecture, model_type = file.metadata["general.architecture"], model_type_of(file)
    decoder = GGUFDecoder(file, architecture)
    config = {
        "model_type": model_type,
        "architectures": [_ARCHITECTURES[model_type]],
        **decoder.config(),
        "attention_bias": "blk.0.attn_q.bias" in file.weights,
    }
    if model_type.endswith("_moe"):
        config |= {
            "num_experts": decoder.size("expert_count"),
            "num_experts_per_tok": decoder.size("expert_used_count"),
            "moe_intermediate_size": decoder.size("expert_feed_forward_length"),
            "norm_topk_prob": model_type == "qwen3_moe",  # a file does not say: it is so in llama.cpp
        }
    if model_type == "qwen2_moe":
        config["qkv_bias"] = config["attention_bias"]  # as its config.json calls it
        config["shared_expert_intermediate_size"] = decoder.size("expert_shared_feed_forward_length")
    return config
