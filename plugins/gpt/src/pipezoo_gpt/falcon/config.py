"""The typed config of Falcon, read from a Hugging Face config, and of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import known_activation, max_rotary_length, max_shareable_length, rope_of_whole_heads
from pipezoo_core.weights import GGUFDecoder, GGUFFile
from pipezoo_gpt.heads import head_dim_of

__all__ = ["FalconConfig", "config_from_gguf"]

_SECOND_NORM = "blk.0.attn_norm_2.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class FalconConfig(DecoderConfig):
    """Falcon.

    Attributes:
        activation: name of the feed-forward layer's activation function.
        layer_norm_eps: added to the variance in the norms.
        is_parallel: whether the feed-forward layer reads what attention reads, and not the sum with its result.
        has_mlp_norm: whether the feed-forward layer's input has a norm of its own.
        has_biases: whether the linear layers have one.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: positions that the model was trained on.
        rope_parameters: of the rotation.
    """

    activation: str
    layer_norm_eps: float
    is_parallel: bool
    has_mlp_norm: bool
    has_biases: bool
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `FalconHuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: there is ALiBi, the activation function or the kind of RoPE is unknown, the heads do
                not divide the hidden size, or a layer is of a kind for which transformers has no formula.
        """
        hidden, heads = config.hidden_size, config.num_attention_heads
        head_dim = head_dim_of(hidden, heads)
        if config.alibi:
            raise UnsupportedModelError(
                "the config has ALiBi, which Falcon's reference implementation rounds to bfloat16 at each position",
                found="alibi: true",
                allowed="alibi: false",
            )
        _check_layers(config)
        rope = rope_of_whole_heads(config.rope_parameters)
        is_new = bool(config.new_decoder_architecture)
        is_parallel = bool(config.parallel_attn)
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=hidden,
            intermediate_size=config.ffn_hidden_size,
            num_layers=config.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=1 if config.multi_query and not is_new else config.num_kv_heads,
            head_dim=head_dim,
            max_seq_len=max_rotary_length(rope, config.max_position_embeddings),
            max_shareable_prompt=max_shareable_length(rope, config.max_position_embeddings),
            activation=known_activation(config.activation),
            layer_norm_eps=config.layer_norm_epsilon,
            is_parallel=is_parallel,
            has_mlp_norm=not is_parallel or (is_new and config.num_ln_in_parallel_attn in (None, 2)),
            has_biases=bool(config.bias),
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=rope,
        )


def _check_layers(config: PretrainedConfig) -> None:
    """Refuses the combinations at which transformers' module fails.

    Raises:
        UnsupportedModelError: it is one of them.
    """
    num_norms = config.num_ln_in_parallel_attn
    if config.new_decoder_architecture:
        if not config.parallel_attn:
            raise UnsupportedModelError(
                "the config has new_decoder_architecture, whose attention and feed-forward layer are side by side",
                found="parallel_attn: false",
                allowed="parallel_attn: true",
            )
        if num_norms not in (None, 1, 2):
            raise UnsupportedModelError(
                "the config's num_ln_in_parallel_attn is unknown", found=num_norms, allowed="1 or 2"
            )
        return
    if config.parallel_attn and num_norms == 2:
        raise UnsupportedModelError(
            "the config has two norms side by side, as only new_decoder_architecture has them",
            found="num_ln_in_parallel_attn: 2",
            allowed="num_ln_in_parallel_attn: 1",
        )
    if not config.multi_query and config.num_kv_heads != config.num_attention_heads:
        raise UnsupportedModelError(
            "the config has grouped heads, as only new_decoder_architecture has them",
            found=f"num_kv_heads: {config.num_kv_heads}",
            allowed=f"num_kv_heads: {config.num_attention_heads}",
        )


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for. What its metadata leaves open is as in llama.cpp.

    Its layers are those of the new architecture: that of Falcon 7B is the same with one key/value head and one norm.

    Raises:
        CorruptCheckpointError: a key that every Falcon file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: the file rotates or scales RoPE in a way that no config.json can say.
    """
    decoder = GGUFDecoder(file, "falcon")
    fields = decoder.config(has_rms_norm=False)
    kept = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
        "rope_parameters", "tie_word_embeddings", "bos_token_id", "eos_token_id",
    )  # fmt: skip
    return {
        "model_type": "falcon",
        "architectures": ["FalconForCausalLM"],
        **{name: fields[name] for name in kept},
        "ffn_hidden_size": fields["intermediate_size"],
        "layer_norm_epsilon": decoder.get("attention.layer_norm_epsilon"),
        "new_decoder_architecture": True,
        "num_kv_heads": fields["num_key_value_heads"],
        "num_ln_in_parallel_attn": 2 if _SECOND_NORM in file.weights else 1,
        "bias": "blk.0.attn_qkv.bias" in file.weights,
    }
