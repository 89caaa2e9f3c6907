"""The typed config of a hybrid Qwen model, read from a Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig, known_layer_types
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import known_activation, max_rotary_length, max_shareable_length
from pipezoo_core.recurrence import StateSpec
from pipezoo_qwen.config import QwenMixture
from pipezoo_qwen.hybrid.huggingface_config import Qwen35HuggingFaceConfig

__all__ = ["DeltaNetSizes", "QwenHybridConfig"]

_HAS_STATE = {"full_attention": False, "linear_attention": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaNetSizes:
    """The sizes of the layers that keep a state.

    Attributes:
        num_key_heads: heads of queries, and as many of keys.
        num_heads: heads of values; each key head serves as many of them in a row.
        key_size: numbers per head of queries and keys.
        value_size: numbers per head of values.
        num_taps: rows that the convolution before the recurrence sees, the row itself included.

    Raises:
        UnsupportedModelError: a size is not positive, or the key heads cannot serve the others evenly.
    """

    num_key_heads: int
    num_heads: int
    key_size: int
    value_size: int
    num_taps: int

    def __post_init__(self) -> None:
        sizes = (self.num_key_heads, self.num_heads, self.key_size, self.value_size, self.num_taps)
        if min(sizes) < 1 or self.num_heads % self.num_key_heads:
            raise UnsupportedModelError(
                "the sizes of the config's linear attention are not those of any model",
                found=f"{self.num_key_heads} key heads of {self.key_size} numbers, {self.num_heads} value heads of "
                f"{self.value_size}, a convolution over {self.num_taps}",
                allowed="sizes above 0, and as many value heads for each key head",
            )

    @property
    def num_channels(self) -> int:
        """Numbers of queries, keys and values together, which the convolution goes over."""
        return 2 * self.num_key_heads * self.key_size + self.num_heads * self.value_size

    @property
    def state(self) -> StateSpec:
        """What a layer keeps: the convolution's inputs, and a matrix per head."""
        return StateSpec(
            ((self.num_taps - 1, self.num_channels), (self.num_heads, self.key_size, self.value_size)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenHybridConfig(DecoderConfig):
    """Qwen3-Next, and the text part of Qwen3.5, with experts or without.

    Attributes:
        activation: name of the feed-forward layer's activation function.
        rms_norm_eps: added to the mean square in the norms.
        attention_bias: whether q, k, v and o have a bias.
        delta_net: sizes of the layers that keep a state.
        has_state: per layer, whether it is one of them; the others are attention.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        rope_parameters: as in the Hugging Face config.
        mixture: its mixtures of experts; None for none.
    """

    activation: str
    rms_norm_eps: float
    attention_bias: bool
    delta_net: DeltaNetSizes
    has_state: tuple[bool, ...]
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]
    mixture: QwenMixture | None

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads one of the configs of `huggingface_config`.

        Raises:
            UnsupportedModelError: a layer's kind or the activation is unknown, or sizes do not fit.
        """
        rope = config.rope_parameters
        if config.hidden_act != "silu":  # it is the convolution's, too
            raise UnsupportedModelError(
                "the config has another activation function than any such model",
                found=config.hidden_act,
                allowed="silu",
            )
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=getattr(config, "intermediate_size", None) or config.shared_expert_intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_seq_len=max_rotary_length(rope, config.max_position_embeddings),
            max_shareable_prompt=max_shareable_length(rope, config.max_position_embeddings),
            activation=known_activation(config.hidden_act),
            rms_norm_eps=config.rms_norm_eps,
            attention_bias=config.attention_bias,
            delta_net=DeltaNetSizes(
                num_key_heads=config.linear_num_key_heads,
                num_heads=config.linear_num_value_heads,
                key_size=config.linear_key_head_dim,
                value_size=config.linear_value_head_dim,
                num_taps=config.linear_conv_kernel_dim,
            ),
            has_state=tuple(_HAS_STATE[kind] for kind in known_layer_types(config.layer_types, _HAS_STATE)),
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=rope,
            mixture=None
            if config.model_type == Qwen35HuggingFaceConfig.model_type or not config.num_experts
            else QwenMixture.of(config),
        )

    @property
    def layers(self) -> tuple[AttentionSpec | StateSpec, ...]:
        """Causal attention with grouped heads, or the state of a gated DeltaNet."""
        return tuple(self.delta_net.state if has_state else self.attention for has_state in self.has_state)
