"""What the config.json of an OPT model says, with the defaults of transformers' config.

Importing that takes a second, and 85 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["OPTHuggingFaceConfig"]


@strict
class OPTHuggingFaceConfig(PretrainedConfig):
    """What a config.json of OPT says.

    Attributes:
        ffn_dim: numbers inside the feed-forward layer.
        do_layer_norm_before: whether a layer normalizes what it reads, and not the sum that it returns.
        _remove_final_layer_norm: whether the last norm is left out; first checkpoints were trained on without it.
        word_embed_proj_dim: numbers per row of the embedding; None for `hidden_size`.
        activation_function: a name of `pipezoo_core.layers.ACTIVATIONS`.
        enable_bias: whether linear layers have one.
        layer_norm_elementwise_affine: whether norms have a weight and a bias.
    """

    model_type = "opt"

    vocab_size: int = 50272
    hidden_size: int = 768
    num_hidden_layers: int = 12
    ffn_dim: int = 3072
    max_position_embeddings: int = 2048
    do_layer_norm_before: bool = True
    _remove_final_layer_norm: bool = False
    word_embed_proj_dim: int | None = None
    num_attention_heads: int = 12
    activation_function: str = "relu"
    pad_token_id: int | None = 1
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 2
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True
    tie_word_embeddings: bool = True
