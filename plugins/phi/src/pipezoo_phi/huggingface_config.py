"""What the config.json of a Phi model says, with the defaults of transformers' configs.

Importing those takes a second, and 85 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["Phi3HuggingFaceConfig", "PhiHuggingFaceConfig"]


@strict
class _HuggingFaceConfig(PretrainedConfig):
    """What both say, RoPE's settings in one place, `rope_parameters`.

    Attributes:
        num_key_value_heads: key/value heads; as many as query heads where it says null.
        hidden_act: a name of `pipezoo_core.layers.ACTIVATIONS`.
    """

    vocab_size: int = 51200
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **others: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**others)  # type: ignore[no-untyped-call]  # transformers'


@strict
class PhiHuggingFaceConfig(_HuggingFaceConfig):
    """What a config.json of Phi says.

    Attributes:
        qk_layernorm: whether each head of queries and keys is normalized.
    """

    model_type = "phi"

    hidden_act: str = "gelu_new"
    layer_norm_eps: float = 1e-5
    qk_layernorm: bool = False

    def __post_init__(self, **others: Any) -> None:
        others.setdefault("partial_rotary_factor", 0.5)
        super().__post_init__(**others)


@strict
class Phi3HuggingFaceConfig(_HuggingFaceConfig):
    """What a config.json of Phi-3 says.

    Attributes:
        original_max_position_embeddings: the length up to which LongRoPE takes its short factors.
        sliding_window: how many tokens a query sees, itself included; None for all.
    """

    model_type = "phi3"

    vocab_size: int = 32064
    hidden_size: int = 3072
    num_hidden_layers: int = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    original_max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    eos_token_id: int | list[int] | None = 32000
    pad_token_id: int | None = 32000
    sliding_window: int | None = None

    def convert_rope_params_to_dict(self, **others: Any) -> dict[str, Any]:
        """As transformers'; what the first checkpoints call `su` or `yarn` is LongRoPE."""
        rope = dict(others.pop("rope_scaling", None) or self.rope_parameters or {})
        if rope.get("rope_type", rope.get("type")) in ("su", "yarn"):
            rope["rope_type"] = "longrope"
        rope.setdefault("partial_rotary_factor", others.pop("partial_rotary_factor", 1.0))
        self.rope_parameters = rope
        return dict(super().convert_rope_params_to_dict(**others))
