"""The typed config of a Llama model, read from a Hugging Face config or from a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PretrainedConfig

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.layers import ACTIVATIONS, RotaryEmbedding, max_rotary_length
from pipezoo_core.weights import GGUFFile

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
        if config.hidden_act not in ACTIVATIONS:
            raise UnsupportedModelError(
                "the activation function is unknown", found=config.hidden_act, allowed=sorted(ACTIVATIONS)
            )
        rope = config.rope_parameters
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_seq_len=max_rotary_length(rope, config.max_position_embeddings),
            max_shareable_prompt=config.max_position_embeddings if rope["rope_type"] == "dynamic" else None,
            activation=config.hidden_act,
            rms_norm_eps=config.rms_norm_eps,
            attention_bias=config.attention_bias,
            mlp_bias=config.mlp_bias,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=rope,
        )

    @property
    def attention(self) -> AttentionSpec:
        """Causal attention with grouped heads."""
        return AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
        )


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for.

    Raises:
        CorruptCheckpointError: a key that every Llama file has is missing.
        UnsupportedModelError: the file scales RoPE in a way that no config.json can say.
    """
    metadata = file.metadata
    try:
        num_heads = metadata["llama.attention.head_count"]
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": file.weights["token_embd.weight"].shape[0],
            "hidden_size": metadata["llama.embedding_length"],
            "intermediate_size": metadata["llama.feed_forward_length"],
            "num_hidden_layers": metadata["llama.block_count"],
            "num_attention_heads": num_heads,
            "num_key_value_heads": metadata.get("llama.attention.head_count_kv", num_heads),
            "head_dim": metadata.get("llama.attention.key_length", metadata["llama.embedding_length"] // num_heads),
            "max_position_embeddings": metadata["llama.context_length"],
            "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
            "rope_parameters": _rope_from_gguf(file),
            "attention_bias": "blk.0.attn_q.bias" in file.weights,
            "mlp_bias": "blk.0.ffn_up.bias" in file.weights,
            "tie_word_embeddings": "output.weight" not in file.weights,
            "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        }
    except KeyError as error:
        raise CorruptCheckpointError(f"the GGUF file lacks {error}", cure="Convert the model again.") from error


def _rope_from_gguf(file: GGUFFile) -> dict[str, Any]:
    metadata = file.metadata
    rope = {"rope_type": "default", "rope_theta": metadata.get("llama.rope.freq_base", 10000.0)}
    if "rope_freqs.weight" in file.weights:
        return rope | _llama3_from_factors(file.weights["rope_freqs.weight"].load(), rope["rope_theta"])
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling == "none":
        return rope
    original = metadata.get("llama.rope.scaling.original_context_length", metadata["llama.context_length"])
    return rope | {
        "rope_type": scaling,
        "factor": metadata["llama.rope.scaling.factor"],
        "original_max_position_embeddings": original,
    }


def _llama3_from_factors(factors: Tensor, theta: float) -> dict[str, Any]:
    """Recognizes Llama 3.1's scaling in the divisors per frequency, which are all that a GGUF file keeps of it."""
    scaled = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    head_dim = 2 * len(factors)
    plain = RotaryEmbedding({"rope_type": "default", "rope_theta": theta}, head_dim, 8192)
    guess = RotaryEmbedding({**scaled, "rope_theta": theta}, head_dim, 8192)
    if not torch.allclose(plain.inverse_frequencies / factors, guess.inverse_frequencies, rtol=1e-3):
        raise UnsupportedModelError(
            "the GGUF file scales RoPE by factors of its own (rope_freqs)", allowed="those of Llama 3.1"
        )
    return scaled
