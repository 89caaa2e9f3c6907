"""The config.json of a Nemotron-H model as a class of our own.

Its fields and defaults are those of transformers' `NemotronHConfig`, whose import brings in torch's compiler and
tensors of many devices: a second, and 80 MB.
"""

# No `from __future__ import annotations`: `strict` checks values by the annotations, and those must be types for that.
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

__all__ = ["NemotronHuggingFaceConfig", "read_config"]

_PATTERN = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
_KINDS = ("layers_block_type", "layer_types")
_OLD_NAMES = {
    "mamba_n_groups": "n_groups",
    "mamba_d_conv": "conv_kernel",
    "mamba_dt_min": "time_step_min",
    "mamba_conv_bias": "use_conv_bias",
}


@strict
class NemotronHuggingFaceConfig(PretrainedConfig):
    """What a config.json of Nemotron-H says.

    Attributes:
        layers_block_type: what each layer is: `linear_attention`, `full_attention`, `mlp` or `moe`, in older files
            `mamba` and `attention`.
        num_key_value_heads: as many as query heads where it is None.
        intermediate_size: of the layers that are a feed-forward layer.
        mlp_hidden_act: the activation of these, and of experts.
        mlp_bias: whether they have biases; experts have none.
        ssm_state_size: numbers per group of B and C.
        n_groups: of these.
        conv_kernel: rows that the convolution sees.
        time_step_min: the shortest step of the recurrence.
        use_conv_bias: whether the convolution has a bias.
        use_bias: whether the layers around it and the recurrence have one.
        moe_intermediate_size: of an expert.
        moe_shared_expert_intermediate_size: of the one that all tokens go through; 0 for `intermediate_size`.
        moe_latent_size: numbers per row that experts get and return; as between layers where it is None.
        n_group: of experts side by side; only those of the best `topk_group` groups can be chosen.
        norm_topk_prob: whether the weights of a token's experts are divided by their sum.
        routed_scaling_factor: of these weights.
        layer_norm_epsilon: added to the mean square in all norms.
    """

    model_type = "nemotron_h"
    attribute_map = {"layer_types": "layers_block_type", "num_local_experts": "n_routed_experts"}  # noqa: RUF012 - as transformers declares it

    vocab_size: int = 131072
    hidden_size: int = 4096
    layers_block_type: list[str] | None = None
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int = 128
    max_position_embeddings: int = 4096
    intermediate_size: int = 21504
    mlp_hidden_act: str = "relu2"
    mlp_bias: bool = False
    ssm_state_size: int = 128
    mamba_num_heads: int = 128
    mamba_head_dim: int = 64
    mamba_hidden_act: str = "silu"
    n_groups: int = 8
    conv_kernel: int = 4
    time_step_min: float | int = 0.001
    use_conv_bias: bool = True
    use_bias: bool = False
    n_routed_experts: int = 8
    moe_intermediate_size: int = 7688
    moe_shared_expert_intermediate_size: int = 7688
    moe_latent_size: int | None = None
    num_experts_per_tok: int = 2
    routed_scaling_factor: float | int = 1.0
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self, **others: Any) -> None:
        for old, name in _OLD_NAMES.items():
            setattr(self, name, others.pop(old, getattr(self, name)))
        if self.layers_block_type is None:
            self.layers_block_type = ["linear_attention", "moe", "full_attention", "mlp"]
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**others)  # type: ignore[no-untyped-call]  # transformers'

    @property
    def num_hidden_layers(self) -> int:
        """As many as have a kind; what else a file says changes nothing."""
        return len(self.layers_block_type or ())

    @num_hidden_layers.setter
    def num_hidden_layers(self, number: int) -> None:
        del number

    def validate_layer_type(self) -> None:
        """Checks nothing: transformers' check does not know all kinds, and `NemotronConfig` refuses others."""


def read_config(config: Mapping[str, Any]) -> NemotronHuggingFaceConfig:
    """Returns what a config.json says, which may have a letter for each layer in place of a list of their kinds."""
    config = {name: value for name, value in config.items() if name not in _KINDS or value is not None}
    pattern = config.pop("hybrid_override_pattern", None)
    if pattern is not None and not any(name in config for name in _KINDS):
        config["layers_block_type"] = [_PATTERN.get(letter, letter) for letter in pattern]
    return NemotronHuggingFaceConfig.from_dict(config)
