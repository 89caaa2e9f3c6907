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
from pipezoo_core.layers import ACTIVATIONS, RotaryEmbedding, max_rotary_length, max_shareable_length
from pipezoo_core.weights import GGUFFile

__all__ = ["LlamaConfig", "config_from_gguf"]

_ROPE = "llama.rope."
_ROPE_SCALINGS = ("linear", "none", "yarn")
_ROPE_KEYS = (
    "dimension_count", "freq_base", "scale_linear", "scaling.factor", "scaling.finetuned",
    "scaling.original_context_length", "scaling.type",
)  # fmt: skip
_YARN_KEYS = {  # as a config.json calls them, from which converters take them
    "scaling.yarn_attn_factor": "attention_factor",
    "scaling.yarn_beta_fast": "beta_fast",
    "scaling.yarn_beta_slow": "beta_slow",
}
_NEUTRAL = {"scaling.attn_factor": 1, "scaling.yarn_ext_factor": 1, "scaling.yarn_log_multiplier": 0}


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
            max_shareable_prompt=max_shareable_length(rope, config.max_position_embeddings),
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
    """Returns the config.json that a GGUF file stands for. What its metadata leaves open is as in llama.cpp.

    Raises:
        CorruptCheckpointError: a key that every Llama file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: the file is a mixture of experts, or rotates or scales RoPE in a way that no config.json
            can say.
    """
    metadata = file.metadata
    if metadata.get("llama.expert_count") or any(".ffn_gate_inp." in name for name in file.weights):
        raise UnsupportedModelError(
            "the GGUF file is a mixture of experts, which Llama is not",
            found=f"{metadata.get('llama.expert_count')} experts",
            cure="Take a model without experts; Mixtral's files call themselves llama, too.",
        )
    try:
        hidden_size, num_heads = _size(metadata, "embedding_length"), _size(metadata, "attention.head_count")
        head_dim = _size(metadata, "attention.key_length", hidden_size // num_heads)
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": file.weights["token_embd.weight"].shape[0],
            "hidden_size": hidden_size,
            "intermediate_size": _size(metadata, "feed_forward_length"),
            "num_hidden_layers": _size(metadata, "block_count"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": _size(metadata, "attention.head_count_kv", num_heads),
            "head_dim": head_dim,
            "max_position_embeddings": _size(metadata, "context_length"),
            "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
            "rope_parameters": _rope_from_gguf(file, head_dim),
            "attention_bias": "blk.0.attn_q.bias" in file.weights,
            "mlp_bias": "blk.0.ffn_up.bias" in file.weights,
            "tie_word_embeddings": "output.weight" not in file.weights,
            "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        }
    except KeyError as error:
        raise CorruptCheckpointError(f"the GGUF file lacks {error}", cure="Convert the model again.") from error


def _size(metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    name = f"llama.{key}"
    size = metadata[name] if default is None else metadata.get(name, default)
    if not isinstance(size, int) or size < 1:
        raise CorruptCheckpointError(
            f"the GGUF file's {name} is no size",
            found=repr(size),
            allowed="a whole number above 0",
            cure="Convert the model again.",
        )
    return size


def _rope_from_gguf(file: GGUFFile, head_dim: int) -> dict[str, Any]:
    """Returns `rope_parameters`; every key below `llama.rope` is read or, where it matters, refused."""
    found = {key.removeprefix(_ROPE): value for key, value in file.metadata.items() if key.startswith(_ROPE)}
    kind = found.get("scaling.type", "linear")
    factor = found.get("scaling.factor", found.get("scale_linear")) or 1.0  # 0 is none, too
    rope = {"rope_type": "default", "rope_theta": found.get("freq_base", 10000.0)}
    _check_rope_keys(found, kind, head_dim)
    if kind == "yarn":
        original = found.get("scaling.original_context_length", file.metadata["llama.context_length"])
        rope |= {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
        rope |= {name: found[key] for key, name in _YARN_KEYS.items() if key in found}
    elif kind == "linear" and factor != 1:
        rope |= {"rope_type": kind, "factor": factor}
    if "rope_freqs.weight" not in file.weights:
        return rope
    if rope["rope_type"] != "default":
        raise UnsupportedModelError("the GGUF file scales RoPE twice", found=f"rope_freqs and {kind} by {factor}")
    return rope | _llama3_from_factors(file.weights["rope_freqs.weight"].load().float(), rope["rope_theta"], head_dim)


def _check_rope_keys(found: Mapping[str, Any], kind: object, head_dim: int) -> None:
    if kind not in _ROPE_SCALINGS:
        raise UnsupportedModelError("the GGUF file scales RoPE in an unknown way", found=kind, allowed=_ROPE_SCALINGS)
    if found.get("dimension_count", head_dim) != head_dim:
        raise UnsupportedModelError(
            "the GGUF file rotates only a part of each head", found=found["dimension_count"], allowed=head_dim
        )
    read = {*_ROPE_KEYS, *(_YARN_KEYS if kind == "yarn" else ())}
    refused = [
        f"{_ROPE}{key} = {value!s:.80}"
        for key, value in found.items()
        if key not in read and not (key in _NEUTRAL and value == _NEUTRAL[key])
    ]
    if refused:
        raise UnsupportedModelError("the GGUF file has settings of RoPE that no config.json can say", found=refused)


def _llama3_from_factors(factors: Tensor, theta: float, head_dim: int) -> dict[str, Any]:
    """Recognizes Llama 3.1's scaling in the divisors per frequency, which are all that a GGUF file keeps of it."""
    scaled = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = RotaryEmbedding({"rope_type": "default", "rope_theta": theta}, head_dim, 8192).inverse_frequencies
    guess = RotaryEmbedding({**scaled, "rope_theta": theta}, head_dim, 8192).inverse_frequencies
    if factors.shape != plain.shape or not torch.allclose(plain / factors, guess, rtol=1e-3):
        raise UnsupportedModelError(
            "the GGUF file scales RoPE by factors of its own (rope_freqs)", allowed="those of Llama 3.1"
        )
    return scaled
