"""What the config.json of a GPT-J model says, with the defaults of transformers' config.

Importing that takes a second, and 85 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["GPTJHuggingFaceConfig"]


@strict
class GPTJHuggingFaceConfig(PretrainedConfig):
    """What a config.json of GPT-J says.

    Attributes:
        rotary_dim: how many of each head's numbers are rotated, the first ones.
        n_inner: numbers inside the feed-forward layer; None for four times `n_embd`.
        activation_function: a name of `pipezoo_core.layers.ACTIVATIONS`.
    """

    model_type = "gptj"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 50400
    n_positions: int = 2048
    n_embd: int = 4096
    n_layer: int = 28
    n_head: int = 16
    rotary_dim: int = 64
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    tie_word_embeddings: bool = False
