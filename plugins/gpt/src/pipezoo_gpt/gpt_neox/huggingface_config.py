"""What the config.json of a GPT-NeoX model says, with the defaults of transformers' config.

Importing that takes a second, and 85 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["GPTNeoXHuggingFaceConfig"]


@strict
class GPTNeoXHuggingFaceConfig(PretrainedConfig):
    """What a config.json of GPT-NeoX says, RoPE's settings in one place, `rope_parameters`.

    Attributes:
        hidden_act: a name of `pipezoo_core.layers.ACTIVATIONS`.
        use_parallel_residual: whether attention and the feed-forward layer both read the layer's input.
        attention_bias: whether the linears of attention have biases.
    """

    model_type = "gpt_neox"

    vocab_size: int = 50432
    hidden_size: int = 6144
    intermediate_size: int = 24576
    num_hidden_layers: int = 44
    num_attention_heads: int = 64
    hidden_act: str = "gelu"
    max_position_embeddings: int = 2048
    layer_norm_eps: float = 1e-5
    use_parallel_residual: bool = True
    attention_bias: bool = True
    rope_parameters: dict[str, Any] | None = None
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False

    def convert_rope_params_to_dict(self, **others: Any) -> dict[str, Any]:
        """As transformers': the type has names of its own, `rotary_emb_base` and `rotary_pct`."""
        rope = dict(others.pop("rope_scaling", None) or self.rope_parameters or {})
        rope.setdefault("rope_theta", others.pop("rotary_emb_base", self.default_theta))
        rope.setdefault("partial_rotary_factor", others.pop("rotary_pct", 0.25))
        self.rope_parameters = rope
        self.standardize_rope_params()
        return others
