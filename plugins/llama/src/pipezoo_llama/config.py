"""The typed config of a Llama model, read from a Hugging Face config or from a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import known_activation, max_rotary_length, max_shareable_length, rope_of_whole_heads
from pipezoo_core.weights import GGUFDecoder, GGUFFile

__all__ = ["LlamaConfig", "config_from_gguf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """Llama 1, 2, 3.x, and the models that share their architecture.

    Attributes:
        activation: name of the feed-forward layer's activation function.
        rms_norm_eps: added to the mean square in the norms.
        attention_bias: whether q, k, v and o have a bias.
        mlp_bias: whether gate, up and down have a bias.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        rope_parameters: as in the Hugging Face config.
    """

    activation: str
    rms_norm_eps: float
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `LlamaHuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: the activation function is unknown.
        """
        rope = rope_of_whole_heads(config.rope_parameters)
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
            activation=known_activation(config.hidden_act),
            rms_norm_eps=config.rms_norm_eps,
            attention_bias=config.attention_bias,
            mlp_bias=config.mlp_bias,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=rope,
        )


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for. What its metadata leaves open is as in llama.cpp.

    Raises:
        CorruptCheckpointError: a key that every Llama file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: the file is a mixture of experts, or rotates or scales RoPE in a way that no config.json
            can say.
    """
    if any(".ffn_gate_inp." in name for name in file.weights):  # with a number of them it is Mixtral's
        raise UnsupportedModelError(
            "the GGUF file is a mixture of experts, which Llama is not",
            found="no llama.expert_count",
            cure="Convert the model again.",
        )
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **GGUFDecoder(file, "llama").config(),
        "attention_bias": "blk.0.attn_q.bias" in file.weights,
        "mlp_bias": "blk.0.ffn_up.bias" in file.weights,
    }
