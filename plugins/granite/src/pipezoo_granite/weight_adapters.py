"""From the names in a checkpoint to those of `GraniteForCausalLM`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, divided, with_experts_divided, with_experts_unstacked, without_redundant

__all__ = ["adapt_safetensors"]

_NAMES = (
    (re.compile(r"\.mamba\.(A_log|dt_bias|D)$"), r".mamba.scan.\1"),
    (re.compile(r"\.(shared_mlp|block_sparse_moe)\."), r".feed_forward.\1."),
    (re.compile(r"\.shared_mlp\.output_linear\."), ".shared_mlp.down_proj."),
    (re.compile(r"\.block_sparse_moe\.input_linear\.weight$"), ".block_sparse_moe.experts.gate_up_proj"),
    (re.compile(r"\.block_sparse_moe\.output_linear\.weight$"), ".block_sparse_moe.experts.down_proj"),
    (re.compile(r"\.block_sparse_moe\.router\.layer\."), ".block_sparse_moe.router."),
)


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """All experts of a layer are one tensor, and the two halves of a gated layer one matrix.

    The names of experts are those of the files that were published, or transformers' own.
    """
    halves = dict.fromkeys(("gate_proj", "up_proj"), config.shared_intermediate_size)
    found: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = key
        for theirs, ours in _NAMES:
            name = theirs.sub(ours, name)
        if ".shared_mlp.input_linear." in name:
            found |= divided(name, tensor, "input_linear", halves)
        else:
            found[name] = tensor
    return without_redundant(with_experts_divided(with_experts_unstacked(found)), config)
