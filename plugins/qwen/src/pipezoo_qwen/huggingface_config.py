"""The config.json of a Qwen model as classes of our own.

Their fields and defaults are those of transformers' `Qwen2Config` and `Qwen3Config`, whose import brings in torch's
compiler and tensors of many devices: a second, and 80 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["Qwen2HuggingFaceConfig", "Qwen3HuggingFaceConfig"]


@strict
class Qwen2HuggingFaceConfig(PretrainedConfig):
    """What a config.json of Qwen2 says, RoPE's settings in one place, `rope_parameters`.

    Attributes:
        num_key_value_heads: key/value heads; as many as query heads where it says null.
        hidden_act: a name of `pipezoo_core.layers.ACTIVATIONS`.
        sliding_window: how many tokens a query of a windowed layer sees, itself included; None without
            `use_sliding_window`.
        max_window_layers: the first layers, so many, have no window.
        layer_types: `full_attention` or `sliding_attention` per layer; as the three before say where it is left out.
    """

    model_type = "qwen2"

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **others: Any) -> None:
        if not self.use_sliding_window:
            self.sliding_window = None
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.layer_types is None:
            num_full = self.num_hidden_layers if self.sliding_window is None else self.max_window_layers
            self.layer_types = [
                "full_attention" if i < num_full else "sliding_attention" for i in range(self.num_hidden_layers)
            ]
        super().__post_init__(**others)  # type: ignore[no-untyped-call]  # transformers'


@strict
class Qwen3HuggingFaceConfig(Qwen2HuggingFaceConfig):
    """What a config.json of Qwen3 says.

    Attributes:
        head_dim: numbers per head.
        attention_bias: whether q, k, v and o have a bias.
    """

    model_type = "qwen3"

    head_dim: int = 128
    attention_bias: bool = False
