"""The config.json of a Granite 4 model as a class of our own.

Its fields and defaults are those of transformers' `GraniteMoeHybridConfig`, whose import brings in torch's compiler and
tensors of many devices: a second, and 80 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["GraniteHuggingFaceConfig", "read_config"]

_NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}  # for which JSON has no form


@strict
class GraniteHuggingFaceConfig(PretrainedConfig):
    """What a config.json of Granite 4 says, RoPE's settings in one place, `rope_parameters`.

    Attributes:
        num_key_value_heads: as many as query heads where it is left out.
        head_dim: numbers per head; `hidden_size` over the heads where it is left out.
        intermediate_size: of an expert.
        shared_intermediate_size: of the feed-forward layer that all tokens go through.
        num_local_experts: of each layer; 0 for none.
        position_embedding_type: `rope`; None or `nope` for attention that knows no positions.
        layer_types: `linear_attention` or `full_attention` per layer, in older files `mamba` or `attention`; none has
            attention where it is left out.
        mamba_d_head: numbers per head of a layer with a state; as they divide its width where it is `auto`.
        mamba_expand: this width over `hidden_size`.
        mamba_chunk_size: rows that transformers computes together, which change nothing.
        time_step_limit: the shortest and the longest step of the recurrence.
    """

    model_type = "granitemoehybrid"
    attribute_map = {"layers_block_type": "layer_types"}  # noqa: RUF012 - as transformers declares it

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    embedding_multiplier: int | float | None = 1.0
    logits_scaling: int | float | None = 1.0
    residual_multiplier: int | float | None = 1.0
    attention_multiplier: int | float | None = 1.0
    num_local_experts: int | None = 8
    num_experts_per_tok: int | None = 2
    shared_intermediate_size: int = 1024
    position_embedding_type: str | None = None
    layer_types: list[str] | None = None
    mamba_n_heads: int | None = 128
    mamba_n_groups: int | None = 1
    mamba_d_state: int | None = 256
    mamba_d_head: int | str | None = "auto"
    mamba_d_conv: int | None = 4
    mamba_expand: int | None = 2
    mamba_chunk_size: int | None = 256
    mamba_conv_bias: bool | None = True
    mamba_proj_bias: bool | None = False
    time_step_limit: list[float | int] | tuple[float | int, ...] | None = (0.0, float("inf"))

    def __post_init__(self, **others: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.layer_types is None:
            self.layer_types = ["linear_attention"] * self.num_hidden_layers
        super().__post_init__(**others)  # type: ignore[no-untyped-call]  # transformers'


def read_config(config: Mapping[str, Any]) -> GraniteHuggingFaceConfig:
    """Returns what a config.json says; a step of any length may have a limit that is no number of JSON."""
    limits = config.get("time_step_limit")
    if isinstance(limits, list):
        config = {**config, "time_step_limit": [*map(_number, limits)]}
    return GraniteHuggingFaceConfig.from_dict(dict(config))


def _number(limit: Any) -> Any:
    """Returns the number that transformers writes as `{"__float__": "Infinity"}`; anything else as it is."""
    return next((number for name, number in _NUMBERS.items() if limit == {"__float__": name}), limit)
