"""What the config.json of a Falcon model says, with the defaults of transformers' config.

Importing that takes a second, and 85 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["FalconHuggingFaceConfig"]


@strict
class FalconHuggingFaceConfig(PretrainedConfig):
    """What a config.json of Falcon says. `n_embed` is an old name of `hidden_size`; null is false.

    Attributes:
        new_decoder_architecture: whether heads are grouped, and attention and feed-forward layer side by side.
        multi_query: whether there is a single key/value head; unread in the new architecture.
        parallel_attn: whether attention and feed-forward layer read the same input.
        num_ln_in_parallel_attn: whether these have 1 norm in common or 2; None for 2 in the new architecture.
        num_kv_heads: key/value heads of the new architecture; as many as query heads where it says null.
        alibi: whether ALiBi says where a token is, and not RoPE.
        bias: whether linear layers have one.
        ffn_hidden_size: numbers inside the feed-forward layer; None for four times `hidden_size`.
        activation: a name of `pipezoo_core.layers.ACTIVATIONS`.
    """

    model_type = "falcon"

    vocab_size: int = 65024
    hidden_size: int = 4544
    num_hidden_layers: int = 32
    num_attention_heads: int = 71
    num_ln_in_parallel_attn: int | None = None
    layer_norm_epsilon: float = 1e-5
    num_kv_heads: int | None = None
    alibi: bool | None = False
    new_decoder_architecture: bool | None = False
    multi_query: bool | None = True
    parallel_attn: bool | None = True
    bias: bool | None = False
    max_position_embeddings: int = 2048
    rope_parameters: dict[str, Any] | None = None
    bos_token_id: int | None = 11
    eos_token_id: int | list[int] | None = 11
    pad_token_id: int | None = None
    ffn_hidden_size: int | None = None
    activation: str = "gelu"
    tie_word_embeddings: bool = True

    def __post_init__(self, **others: Any) -> None:
        """Reads the old name, and fills in what depends on other fields."""
        old_size = others.pop("n_embed", None)
        if old_size is not None:
            self.hidden_size = old_size
        if self.num_kv_heads is None:
            self.num_kv_heads = self.num_attention_heads
        if self.ffn_hidden_size is None:
            self.ffn_hidden_size = 4 * self.hidden_size
        super().__post_init__(**others)  # type: ignore[no-untyped-call]  # transformers'
