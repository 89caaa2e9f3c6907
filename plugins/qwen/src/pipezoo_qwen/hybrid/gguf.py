"""Qwen3-Next and Qwen3.5 in GGUF files: their config, and the names, order and numbers of their tensors.

What is in a file is as llama.cpp's converter writes it (`conversion/qwen.py`), and as its `qwen3next`, `qwen35` and
`qwen35moe` read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from pipezoo_core.weights import (
    SOFTMAX,
    GGUFDecoder,
    GGUFFile,
    LazyTensor,
    logarithm_of_rates,
    model_type_of,
    renamed_from_gguf,
    with_a_channel,
    without_further_layers,
)
from pipezoo_qwen.hybrid.config import DeltaNetSizes, QwenHybridConfig
from pipezoo_qwen.hybrid.weight_adapters import adapt_hybrid
from pipezoo_qwen.weight_adapters import as_row

__all__ = ["adapt_hybrid_gguf", "hybrid_config_from_gguf"]

_ARCHITECTURES = {
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
}
_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_in": "linear_attn.in_proj_qkvz",  # of the first files of Qwen3-Next, in place of these two
    "ssm_ba": "linear_attn.in_proj_ba",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_a": "linear_attn.A_log",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
_NORMS = ("attn_norm", "post_attention_norm", "attn_q_norm", "attn_k_norm", "output_norm")

_Change = Callable[[LazyTensor], LazyTensor]


def hybrid_config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """Returns the config.json that a GGUF file stands for. Layers that have a decay keep a state.

    The last layers, which predict further tokens, are left out. RoPE's sections are not read: they matter for images.

    Raises:
        CorruptCheckpointError: a key that every such file has is missing, or a size is no whole number above 0.
        UnsupportedModelError: layers differ in their heads, or the file rotates, chooses experts or has windows in a
            way that no config.json can say.
    """
    architecture, model_type = file.metadata["general.architecture"], model_type_of(file)
    decoder = GGUFDecoder(file, architecture)
    decoder.check_neutral(expert_gating_func=SOFTMAX)
    num_layers = decoder.num_layers() - decoder.num_further_layers()
    num_heads, is_mixture = decoder.size("ssm.time_step_rank"), model_type != "qwen3_5_text"
    shared_size = decoder.size("expert_shared_feed_forward_length") if is_mixture else None
    config = {
        "model_type": model_type,
        "architectures": [_ARCHITECTURES[model_type]],
        **decoder.config(
            rotates_part=True,
            rope_keys=["dimension_sections"],
            num_kv_heads=max(decoder.kv_heads()),
            intermediate_size=shared_size,  # a mixture may have no other
        ),
        "num_hidden_layers": num_layers,
        "layer_types": [
            "linear_attention" if f"blk.{number}.ssm_a" in file.weights else "full_attention"
            for number in range(num_layers)
        ],
        "attention_bias": any(name.endswith(".attn_q.bias") for name in file.weights),
        "linear_conv_kernel_dim": decoder.size("ssm.conv_kernel"),
        "linear_num_key_heads": decoder.size("ssm.group_count"),
        "linear_num_value_heads": num_heads,
        "linear_key_head_dim": decoder.size("ssm.state_size"),
        "linear_value_head_dim": decoder.size("ssm.inner_size") // num_heads,
    }
    if is_mixture:
        config |= {
            "num_experts": decoder.size("expert_count"),
            "num_experts_per_tok": decoder.size("expert_used_count"),
            "moe_intermediate_size": decoder.size("expert_feed_forward_length"),
            "shared_expert_intermediate_size": shared_size,
            "norm_topk_prob": True,  # a file does not say: it is so in llama.cpp
        }
    return config


def adapt_hybrid_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own, the decay's rate in place of its logarithm, and weights of norms with the 1 added.

    The value heads of Qwen3.5 are in an order of their own: see `_order`.

    Raises:
        CorruptCheckpointError: when a rate is read that is not below 0.
    """
    sizes = QwenHybridConfig.from_huggingface(config).delta_net
    changes: dict[str, _Change] = {
        **dict.fromkeys(_NORMS, _without_the_one),
        "ffn_gate_inp_shexp": as_row,
        "ssm_a": logarithm_of_rates,
        "ssm_conv1d": with_a_channel,
    }
    if config.model_type != "qwen3_next" and sizes.num_heads > sizes.num_key_heads:
        for kind, change in _put_back(sizes).items():
            changes[kind] = _both(changes[kind], change) if kind in changes else change
    known = without_further_layers(tensors, config.num_hidden_layers)
    return adapt_hybrid(renamed_from_gguf(known, changes, _NAMES), config)


def _put_back(sizes: DeltaNetSizes) -> dict[str, _Change]:
    """Returns what puts the value heads of each kind of tensor into the order of a config.json's checkpoint."""
    num_keys = 2 * sizes.num_key_heads * sizes.key_size
    values, numbers = _order(sizes, sizes.value_size), _order(sizes, 1)
    behind_keys = [slice(0, num_keys), *(slice(num_keys + part.start, num_keys + part.stop) for part in values)]
    return {
        **dict.fromkeys(("attn_qkv", "ssm_conv1d"), _with_rows(behind_keys)),
        "attn_gate": _with_rows(values),
        **dict.fromkeys(("ssm_alpha", "ssm_beta", "ssm_a", "ssm_dt.bias"), _with_rows(numbers)),
        "ssm_out": _with_columns(values),
    }


def _order(sizes: DeltaNetSizes, size: int) -> list[slice]:
    """Returns where a file has each value head of `size` numbers.

    A checkpoint has the heads that a key head serves side by side, a file the first one of every key head, then the
    second ones. Of three key heads that serve two each, heads 0 to 5 are at 0, 3, 1, 4, 2, 5.
    """
    served = sizes.num_heads // sizes.num_key_heads
    places = (turn * sizes.num_key_heads + key for key in range(sizes.num_key_heads) for turn in range(served))
    return [slice(place * size, (place + 1) * size) for place in places]


def _with_rows(ranges: Sequence[slice]) -> _Change:
    """Returns what takes ranges of a tensor that has so many rows; another is left, to be reported."""
    num_rows = sum(part.stop - part.start for part in ranges)
    return lambda tensor: tensor.rows(*ranges) if tensor.shape[0] == num_rows else tensor


def _with_columns(ranges: Sequence[slice]) -> _Change:
    num_columns = sum(part.stop - part.start for part in ranges)
    return lambda tensor: tensor.columns(*ranges) if tensor.shape[1:] == (num_columns,) else tensor


def _both(first: _Change, second: _Change) -> _Change:
    return lambda tensor: second(first(tensor))


def _without_the_one(weight: LazyTensor) -> LazyTensor:
    return weight.then(_minus_one, num_rows=1)


def _minus_one(weight: Tensor) -> Tensor:
    return weight - 1
