"""What the config.json of a GPT-2 model says, with the defaults of transformers' config.

Importing that takes a second, and 85 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["GPT2HuggingFaceConfig"]


@strict
class GPT2HuggingFaceConfig(PretrainedConfig):
    """What a config.json of GPT-2 says.

    Attributes:
        n_inner: numbers inside the feed-forward layer; None for four times `n_embd`.
        activation_function: a name of `pipezoo_core.layers.ACTIVATIONS`.
        scale_attn_weights: whether scores are divided by the root of a head's size.
        scale_attn_by_inverse_layer_idx: whether they are divided by the layer's number, too, from 1 on.
    """

    model_type = "gpt2"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    tie_word_embeddings: bool = True
