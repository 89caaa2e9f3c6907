"""The config.json of an OLMo model as classes of our own.

Their fields and defaults are those of transformers' `OlmoConfig`, `Olmo2Config` and `Olmo3Config`, whose import brings
in torch's compiler and tensors of many devices: a second, and 80 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

from pipezoo_core.errors import UnsupportedModelError

__all__ = ["Olmo2HuggingFaceConfig", "Olmo3HuggingFaceConfig", "OlmoHuggingFaceConfig", "olmo2_or_3"]

_THETA = 500_000.0  # of OLMo 3
_KINDS = ("full_attention", "sliding_attention")


@strict
class OlmoHuggingFaceConfig(PretrainedConfig):
    """What a config.json of OLMo says, RoPE's settings in one place, `rope_parameters`.

    Attributes:
        num_key_value_heads: key/value heads; as many as query heads where it is left out.
        head_dim: numbers per head; `hidden_size` over the heads where it is left out.
        hidden_act: a name of `pipezoo_core.layers.ACTIVATIONS`.
        clip_qkv: queries, keys and values lie between this and its negative; None for no bound.
    """

    model_type = "olmo"

    vocab_size: int = 50304
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    clip_qkv: float | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 50279

    def __post_init__(self, **others: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**others)  # type: ignore[no-untyped-call]  # transformers'


@strict
class Olmo2HuggingFaceConfig(OlmoHuggingFaceConfig):
    """What a config.json of OLMo 2 says. `clip_qkv` has no effect there."""

    model_type = "olmo2"

    rms_norm_eps: float = 1e-5


@strict
class Olmo3HuggingFaceConfig(Olmo2HuggingFaceConfig):
    """What a config.json of OLMo 3 says, RoPE's settings by kind of layer.

    Attributes:
        sliding_window: how many tokens a query of a windowed layer sees, itself included.
        layer_types: `full_attention` or `sliding_attention` per layer; every fourth is full where it is left out.
        rope_parameters: `full_attention` and `sliding_attention`, each with what RoPE needs.
    """

    model_type = "olmo3"

    sliding_window: int | None = 4096
    layer_types: list[str] | None = None

    def __post_init__(self, **others: Any) -> None:
        if self.layer_types is None:
            self.layer_types = [
                "sliding_attention" if (i + 1) % 4 else "full_attention" for i in range(self.num_hidden_layers)
            ]
        super().__post_init__(**others)

    def convert_rope_params_to_dict(self, **others: Any) -> dict[str, Any]:
        """Makes `rope_parameters` of what older configs say outside, `rope_scaling` for layers without a window.

        Raises:
            UnsupportedModelError: a `rope_theta` stands outside, and it is not the one that versions of transformers
                agree on: to some it is that of all layers, to others of those without a window.
        """
        scaling, given = others.pop("rope_scaling", None) or {}, self.rope_parameters or {}
        theta = others.pop("rope_theta", _THETA)
        if theta != _THETA and not all("rope_theta" in (given.get(kind) or {}) for kind in _KINDS):
            raise UnsupportedModelError(
                "the config does not say which layers its rope_theta is of",
                found=theta,
                allowed=_THETA,
                cure="Give each kind of layer its own, in rope_parameters.",
            )
        self.rope_parameters = {}
        for kind in _KINDS:
            rope = {**(given.get(kind) or {}), **(scaling if kind == "full_attention" else {})}
            rope.setdefault("rope_type", rope.get("type", "default"))
            rope.setdefault("rope_theta", _THETA)
            self.rope_parameters[kind] = rope
        self.standardize_rope_params()
        return others


def olmo2_or_3(config: Mapping[str, Any]) -> Olmo2HuggingFaceConfig:
    """Returns what a config.json of OLMo 2 says, or of OLMo 3, whose GGUF files call themselves OLMo 2's."""
    is_third = config.get("model_type") == Olmo3HuggingFaceConfig.model_type
    return (Olmo3HuggingFaceConfig if is_third else Olmo2HuggingFaceConfig).from_dict(dict(config))
