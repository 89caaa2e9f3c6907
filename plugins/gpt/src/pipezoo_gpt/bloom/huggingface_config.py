"""What the config.json of a BLOOM model says, with the defaults of transformers' config.

Importing that takes a second, and 85 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["BloomHuggingFaceConfig"]


@strict
class BloomHuggingFaceConfig(PretrainedConfig):
    """What a config.json of BLOOM says. `n_embed` is an old name of `hidden_size`.

    Attributes:
        seq_length: tokens of a request; ALiBi has no bound, so this is what the models were trained on.
        apply_residual_connection_post_layernorm: whether a layer is added to its normalized input.
        pretraining_tp: devices that trained it.
        slow_but_exact: whether products are added up as these did.
    """

    model_type = "bloom"
    attribute_map: ClassVar[dict[str, str]] = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}

    vocab_size: int = 250880
    hidden_size: int = 64
    n_layer: int = 2
    n_head: int = 8
    seq_length: int = 2048
    layer_norm_epsilon: float = 1e-5
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None
    apply_residual_connection_post_layernorm: bool = False
    pretraining_tp: int = 1
    slow_but_exact: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Reads the old name."""
        old_size = kwargs.pop("n_embed", None)
        if old_size is not None:
            self.hidden_size = old_size
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]  # transformers'
