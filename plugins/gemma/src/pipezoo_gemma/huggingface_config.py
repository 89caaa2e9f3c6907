"""The config.json of a Gemma model as classes of our own.

Their fields and defaults are those of transformers' `GemmaConfig`, `Gemma2Config` and `Gemma3TextConfig`, whose import
brings in torch's compiler and tensors of many devices: a second, and 80 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["Gemma2HuggingFaceConfig", "Gemma3TextHuggingFaceConfig", "GemmaHuggingFaceConfig", "text_part"]

_OF_THE_WHOLE = ("bos_token_id", "dtype", "eos_token_id", "pad_token_id", "torch_dtype")
_THETAS = {"full_attention": ("rope_theta", 1_000_000.0), "sliding_attention": ("rope_local_base_freq", 10_000.0)}


@strict
class GemmaHuggingFaceConfig(PretrainedConfig):
    """What a config.json of Gemma says, RoPE's settings in one place, `rope_parameters`.

    Attributes:
        hidden_act: a name of `pipezoo_core.layers.ACTIVATIONS`. The first checkpoints say `gelu`, and mean what the
            others call `gelu_pytorch_tanh`, as it is called here then.
    """

    model_type = "gemma"

    vocab_size: int = 256000
    hidden_size: int = 3072
    intermediate_size: int = 24576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 256
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 1

    def __post_init__(self, **others: Any) -> None:
        if self.hidden_act == "gelu":
            self.hidden_act = "gelu_pytorch_tanh"
        super().__post_init__(**others)  # type: ignore[no-untyped-call]  # transformers'


@strict
class Gemma2HuggingFaceConfig(PretrainedConfig):
    """What a config.json of Gemma 2 says.

    Attributes:
        hidden_activation: a name of `pipezoo_core.layers.ACTIVATIONS`.
        query_pre_attn_scalar: the scores are divided by its root.
        sliding_window: how many tokens a query of a windowed layer sees, itself included.
        layer_types: `full_attention` or `sliding_attention` per layer; in turns, a window first, where it is left out.
        final_logit_softcapping: bound of the logits.
        attn_logit_softcapping: bound of the scores.
    """

    model_type = "gemma2"

    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    query_pre_attn_scalar: int = 256
    sliding_window: int | None = 4096
    layer_types: list[str] | None = None
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 1

    def __post_init__(self, **others: Any) -> None:
        self._make_layer_types(every=2)
        super().__post_init__(**others)  # type: ignore[no-untyped-call]  # transformers'

    def _make_layer_types(self, *, every: int) -> None:
        if self.layer_types is None:
            self.layer_types = [
                "sliding_attention" if (i + 1) % every else "full_attention" for i in range(self.num_hidden_layers)
            ]


@strict
class Gemma3TextHuggingFaceConfig(Gemma2HuggingFaceConfig):
    """What a config.json of Gemma 3 says of its text part, RoPE's settings by kind of layer.

    Attributes:
        layer_types: where it is left out, every `sliding_window_pattern`-th layer, by default the sixth, has no window.
        rope_parameters: `full_attention` and `sliding_attention`, each with what RoPE needs.
    """

    model_type = "gemma3_text"

    vocab_size: int = 262_208
    max_position_embeddings: int = 131_072
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None

    def __post_init__(self, **others: Any) -> None:
        self._make_layer_types(every=others.get("sliding_window_pattern") or 6)
        super().__post_init__(**others)

    def convert_rope_params_to_dict(self, **others: Any) -> dict[str, Any]:
        """Makes `rope_parameters` of what older configs say outside, `rope_scaling` for layers without a window."""
        scaling = others.pop("rope_scaling", None) or {}
        given = self.rope_parameters or {}
        self.rope_parameters = {}
        for kind, (name, theta) in _THETAS.items():
            rope = {**(given.get(kind) or {}), **(scaling if kind == "full_attention" else {})}
            rope.setdefault("rope_type", rope.get("type", "default"))
            rope.setdefault("rope_theta", others.pop(name, theta))
            self.rope_parameters[kind] = rope
        self.standardize_rope_params()
        return others


def text_part(config: Mapping[str, Any]) -> Gemma3TextHuggingFaceConfig:
    """Returns what the config.json of a Gemma 3 that also sees says of its text part."""
    text = config.get("text_config")
    if text is None and config.get("model_type") == "gemma3_text":  # as a GGUF file's is, which has no other part
        text = config
    whole = {name: config[name] for name in _OF_THE_WHOLE if config.get(name) is not None}
    tied = config.get("tie_word_embeddings", True)
    return Gemma3TextHuggingFaceConfig.from_dict({**(text or {}), **whole, "tie_word_embeddings": tied})
