"""The typed config of an LFM2 model, read from a Hugging Face config or from a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig, known_layer_types
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import Routing, max_rotary_length, max_shareable_length, rope_of_whole_heads
from pipezoo_core.recurrence import StateSpec
from pipezoo_core.weights import SIGMOID, GGUFDecoder, GGUFFile, model_type_of

__all__ = ["Lfm2Config", "Lfm2Mixture", "config_from_gguf"]

_HAS_ATTENTION = {"full_attention": True, "conv": False}
_ARCHITECTURES = {"lfm2": "Lfm2ForCausalLM", "lfm2_moe": "Lfm2MoeForCausalLM"}
_ADDED_TO_SUM = 1e-6  # of a token's weights, before they are divided by it


@dataclass(frozen=True, slots=True, kw_only=True)
class Lfm2Mixture:
    """The mixtures of experts that take the place of feed-forward layers in LFM2-MoE.

    Attributes:
        num_dense_layers: the first layers, so many, have none.
        routing: how a token's experts are chosen.
        has_correction: whether the scores have a correction for the choice.
        expert_size: numbers per row inside an expert.
    """

    num_dense_layers: int
    routing: Routing
    has_correction: bool
    expert_size: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        """Reads a `Lfm2MoeHuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: there are not as many experts as a token goes to, or they have no size.
        """
        if config.moe_intermediate_size < 1:
            raise UnsupportedModelError(
                "the config's moe_intermediate_size is not positive", found=config.moe_intermediate_size
            )
        return cls(
            num_dense_layers=config.num_dense_layers,
            routing=Routing(
                num_experts=config.num_experts,
                top_k=config.num_experts_per_tok,
                scores="sigmoid",
                normalize=config.norm_topk_prob,
                added_to_sum=_ADDED_TO_SUM,
                scale=config.routed_scaling_factor,
            ),
            has_correction=config.use_expert_bias,
            expert_size=config.moe_intermediate_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lfm2Config(DecoderConfig):
    """LFM2: layers of which some have attention, and the others a short convolution; with experts or without.

    Attributes:
        norm_eps: added to the mean square in the norms.
        has_attention: per layer, whether it has attention.
        num_taps: of a convolution: how many tokens it sees, the layer's own included.
        conv_bias: whether the convolutions and the layers around them have a bias.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        rope_parameters: as in the Hugging Face config.
        mixture: its mixtures of experts; None for none.
    """

    norm_eps: float
    has_attention: tuple[bool, ...]
    num_taps: int
    conv_bias: bool
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]
    mixture: Lfm2Mixture | None

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `Lfm2HuggingFaceConfig`, a `Lfm2MoeHuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: a layer is of an unknown kind, or the config does not say of which; a convolution
                sees one token alone, a part of each head alone is rotated, or experts cannot be chosen.
        """
        if config.layer_types is None:
            raise UnsupportedModelError(
                "the config does not say which layers have attention", found="no layer_types", allowed=[*_HAS_ATTENTION]
            )
        if config.conv_L_cache < 2:
            raise UnsupportedModelError(
                "the config's conv_L_cache is too small", found=config.conv_L_cache, allowed="at least 2"
            )
        rope, length = rope_of_whole_heads(config.rope_parameters), config.max_position_embeddings
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=_intermediate_size(config),
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            max_seq_len=max_rotary_length(rope, length),
            max_shareable_prompt=max_shareable_length(rope, length),
            norm_eps=config.norm_eps,
            has_attention=tuple(_HAS_ATTENTION[kind] for kind in known_layer_types(config.layer_types, _HAS_ATTENTION)),
            num_taps=config.conv_L_cache,
            conv_bias=config.conv_bias,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=length,
            rope_parameters=rope,
            mixture=Lfm2Mixture.of(config) if config.model_type == "lfm2_moe" else None,
        )

    @property
    def layers(self) -> tuple[AttentionSpec | StateSpec, ...]:
        """Attention, or the inputs of a convolution that the next token needs."""
        state = StateSpec(((self.num_taps - 1, self.hidden_size),))
        return tuple(self.attention if has_attention else state for has_attention in self.has_attention)


def _intermediate_size(config: PretrainedConfig) -> int:
    """Returns the size as it is, or adjusted: of 100 that is 66 for a multiple of 2 and a factor of 1."""
    size: int = config.intermediate_size
    if config.model_type == "lfm2_moe" or not config.block_auto_adjust_ff_dim:
        return size
    size = int(2 * size / 3)
    if config.block_ffn_dim_multiplier is None:
        return size
    multiple = config.block_multiple_of
    return -(-int(config.block_ffn_dim_multiplier * size) // multiple) * multiple


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for. Layers without key/value heads are convolutions.

    Raises:
        CorruptCheckpointError: a key that every LFM2 file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: layers differ in their heads, or the file rotates, chooses experts or has windows in a
            way that no config.json can say.
    """
    architecture, model_type = file.metadata["general.architecture"], model_type_of(file)
    decoder = GGUFDecoder(file, architecture)
    decoder.check_neutral()
    heads = decoder.kv_heads()
    fields = decoder.config(num_kv_heads=max(heads))
    config = {
        "model_type": model_type,
        "architectures": [_ARCHITECTURES[model_type]],
        **fields,
        "norm_eps": fields["rms_norm_eps"],
        "layer_types": ["full_attention" if number else "conv" for number in heads],
        "conv_L_cache": decoder.size("shortconv.l_cache"),
        "conv_bias": any(name.endswith(".shortconv.in_proj.bias") for name in file.weights),
    }
    if model_type == "lfm2":
        return {**config, "block_auto_adjust_ff_dim": False}
    return config | _experts_from_gguf(file, decoder)


def _experts_from_gguf(file: GGUFFile, decoder: GGUFDecoder) -> dict[str, Any]:
    """Returns what a config.json says of experts; what a file cannot say is as in llama.cpp."""
    if decoder.get("expert_gating_func") != SIGMOID:
        raise UnsupportedModelError(
            "the GGUF file makes the scores of experts in another way than any such model",
            found=f"lfm2moe.expert_gating_func = {decoder.get('expert_gating_func')}",
            allowed=f"{SIGMOID}, the sigmoid",
        )
    return {
        "num_dense_layers": decoder.number("leading_dense_block_count", 0, most=decoder.num_layers()),
        "num_experts": decoder.size("expert_count"),
        "num_experts_per_tok": decoder.size("expert_used_count"),
        "moe_intermediate_size": decoder.size("expert_feed_forward_length"),
        "use_expert_bias": any(name.endswith(".exp_probs_b.bias") for name in file.weights),
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    }
