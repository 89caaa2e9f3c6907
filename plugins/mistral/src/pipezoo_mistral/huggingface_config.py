"""The config.json of a Mistral model as classes of our own.

Their fields and defaults are those of transformers' `MistralConfig`, `Ministral3Config` and `MixtralConfig`, whose
import brings in torch's compiler and tensors of many devices: a second, and 80 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["Ministral3HuggingFaceConfig", "MistralHuggingFaceConfig", "MixtralHuggingFaceConfig", "text_part"]

_OF_THE_WHOLE = ("bos_token_id", "dtype", "eos_token_id", "pad_token_id", "torch_dtype")


@strict
class MistralHuggingFaceConfig(PretrainedConfig):
    """What a config.json of Mistral says, RoPE's settings in one place, `rope_parameters`.

    Attributes:
        head_dim: numbers per head; `hidden_size` over the heads where it is left out.
        sliding_window: how many tokens a query sees, itself included; None for all.
        hidden_act: a name of `pipezoo_core.layers.ACTIVATIONS`.
    """

    model_type = "mistral"

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096
    rms_norm_eps: float = 1e-6
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **others: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**others)  # type: ignore[no-untyped-call]  # transformers'


@strict
class Ministral3HuggingFaceConfig(MistralHuggingFaceConfig):
    """What a config.json of Ministral 3 says. `rope_parameters` also say how queries are scaled."""

    model_type = "ministral3"
    ignore_keys_at_rope_validation = {"llama_4_scaling_beta", "max_position_embeddings"}  # noqa: RUF012 - as transformers declares it

    vocab_size: int = 131072
    num_hidden_layers: int = 34
    head_dim: int | None = 128
    max_position_embeddings: int = 262144
    sliding_window: int | None = None
    rms_norm_eps: float = 1e-5

    def __post_init__(self, **others: Any) -> None:
        if self.rope_parameters is None:
            self.rope_parameters = {
                "type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "original_max_position_embeddings": 16384,
                "max_position_embeddings": self.max_position_embeddings,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale_all_dim": 1.0,
                "mscale": 1.0,
                "llama_4_scaling_beta": 0.1,
            }
        super().__post_init__(**others)


@strict
class MixtralHuggingFaceConfig(MistralHuggingFaceConfig):
    """What a config.json of Mixtral says.

    Attributes:
        num_experts_per_tok: of `num_local_experts`, so many are chosen for a token.
    """

    model_type = "mixtral"
    default_theta = 1e6
    attribute_map = {"num_experts": "num_local_experts"}  # noqa: RUF012 - likewise

    sliding_window: int | None = None
    rms_norm_eps: float = 1e-5
    num_experts_per_tok: int = 2
    num_local_experts: int = 8


def text_part(config: Mapping[str, Any]) -> MistralHuggingFaceConfig:
    """Returns what the config.json of a Mistral 3 that also sees says of its text part: a Mistral or a Ministral 3."""
    text = config["text_config"]
    is_ministral = text.get("model_type") == Ministral3HuggingFaceConfig.model_type
    whole = {name: config[name] for name in _OF_THE_WHOLE if name in config}
    tied = config.get("tie_word_embeddings", True)
    config_class = Ministral3HuggingFaceConfig if is_ministral else MistralHuggingFaceConfig
    return config_class.from_dict({**text, **whole, "tie_word_embeddings": tied})
