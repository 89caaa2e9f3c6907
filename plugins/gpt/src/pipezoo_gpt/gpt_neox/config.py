"""The typed config of GPT-NeoX, read from a Hugging Face config, and of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from transformers import PretrainedConfig

from pipezoo_core.decoder import DecoderConfig
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import known_activation, max_rotary_length, max_shareable_length
from pipezoo_core.weights import GGUFDecoder, GGUFFile
from pipezoo_gpt.heads import head_dim_of

__all__ = ["GPTNeoXConfig", "config_from_gguf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTNeoXConfig(DecoderConfig):
    """GPT-NeoX.

    Attributes:
        activation: name of the feed-forward layer's activation function.
        layer_norm_eps: added to the variance in the norms.
        attention_bias: whether the linears of attention have biases.
        is_parallel: whether attention and the feed-forward layer both read the layer's input; else the feed-forward
            layer reads what attention has been added to.
        tie_word_embeddings: whether the head's weight is the embedding's.
        max_position_embeddings: the trained length.
        rope_parameters: as in the Hugging Face config, `partial_rotary_factor` included.
    """

    activation: str
    layer_norm_eps: float
    attention_bias: bool
    is_parallel: bool
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_parameters: Mapping[str, Any]

    @classmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a `GPTNeoXHuggingFaceConfig`, or transformers' own.

        Raises:
            UnsupportedModelError: the activation function or the kind of RoPE is unknown, the heads do not divide the
                hidden size, or the config gives them another size.
        """
        hidden, heads = config.hidden_size, config.num_attention_heads
        head_dim = head_dim_of(hidden, heads)
        if getattr(config, "head_dim", None) not in (None, head_dim):
            raise UnsupportedModelError(
                "the config has a head_dim that GPT-NeoX has not", found=config.head_dim, allowed=head_dim
            )
        rope, length = config.rope_parameters, config.max_position_embeddings
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=hidden,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim,
            max_seq_len=max_rotary_length(rope, length),
            max_shareable_prompt=max_shareable_length(rope, length),
            activation=known_activation(config.hidden_act),
            layer_norm_eps=config.layer_norm_eps,
            attention_bias=config.attention_bias,
            is_parallel=config.use_parallel_residual,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=length,
            rope_parameters=rope,
        )


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for.

    What its metadata leaves open is as in llama.cpp, the activation function as in Pythia: `gelu`.

    Raises:
        CorruptCheckpointError: a key that every GPT-NeoX file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: the file scales RoPE in a way that no config.json can say.
    """
    decoder = GGUFDecoder(file, "gptneox")
    return {
        **decoder.config(has_rms_norm=False, rotates_part=True),
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "layer_norm_eps": decoder.get("attention.layer_norm_epsilon"),
        "use_parallel_residual": decoder.get("use_parallel_residual"),
        "attention_bias": "blk.0.attn_qkv.bias" in file.weights,
    }
