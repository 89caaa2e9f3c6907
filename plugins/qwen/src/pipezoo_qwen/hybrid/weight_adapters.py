"""From the names in a checkpoint to those of `QwenHybridForCausalLM`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, of_text_part, with_experts_unstacked
from pipezoo_qwen.hybrid.config import QwenHybridConfig
from pipezoo_qwen.weight_adapters import adapt_safetensors

__all__ = ["adapt_hybrid"]

_DRAFTING = "mtp."  # layers that guess tokens ahead, which transformers leaves out, too
_OF_THE_RULE = re.compile(r"(.*\.linear_attn)\.(A_log|dt_bias)")


def adapt_hybrid(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """What a file has head by head in one matrix is sorted by part; of a model that also sees, the text part is taken.

    A query head has its gate behind it. In Qwen3-Next a key head of a linear layer has the values that it serves behind
    it, and then their gates; and in another matrix the strengths and the decays of these.
    """
    hybrid = QwenHybridConfig.from_huggingface(config)
    found: dict[str, LazyTensor] = {}
    for key, tensor in of_text_part(tensors).items():
        if key.startswith(_DRAFTING):
            continue
        found |= _sorted(_OF_THE_RULE.sub(r"\1.rule.\2", key), tensor, hybrid)
    return adapt_safetensors(with_experts_unstacked(found), config)


def _sorted(name: str, tensor: LazyTensor, config: QwenHybridConfig) -> dict[str, LazyTensor]:
    """Returns a tensor's rows by the names of their parts; one of another number of rows as it is, to be reported."""
    sizes = config.delta_net
    served = sizes.num_heads // sizes.num_key_heads
    values = served * sizes.value_size
    fused: dict[str, tuple[int, Sequence[int], dict[str, Sequence[int]]]] = {
        "q_proj": (config.num_heads, [config.head_dim] * 2, {"q_proj": [0], "q_gate": [1]}),
        "in_proj_qkvz": (
            sizes.num_key_heads,
            [sizes.key_size, sizes.key_size, values, values],
            {"in_proj_qkv": [0, 1, 2], "in_proj_z": [3]},
        ),
        "in_proj_ba": (sizes.num_key_heads, [served] * 2, {"in_proj_b": [0], "in_proj_a": [1]}),
    }
    for layer, (num_heads, per_head, parts) in fused.items():
        if f".{layer}." in name and tensor.shape[0] == num_heads * sum(per_head):
            ranges = _ranges(num_heads, per_head)
            return {
                name.replace(f".{layer}.", f".{part}."): tensor.rows(*(rows for i in numbers for rows in ranges[i]))
                for part, numbers in parts.items()
            }
    return {name: tensor}


def _ranges(num_heads: int, sizes: Sequence[int]) -> list[list[slice]]:
    """Returns where the rows of each part are, head after head.

    Of two heads with parts of 2 and 1 rows, those of the first are 0 to 1 and 3 to 4, those of the second 2 and 5.
    """
    *starts, whole = accumulate(sizes, initial=0)
    return [
        [slice(head * whole + start, head * whole + start + size) for head in range(num_heads)]
        for start, size in zip(starts, sizes, strict=True)
    ]
