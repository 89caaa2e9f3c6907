"""From the names in a checkpoint to those of `GPT2LMHeadModel`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, divided, without_redundant

__all__ = ["adapt_gpt2"]

_MASK = re.compile(r"transformer\.h\.\d+\.attn\.bias")  # old checkpoints store it
_CONV1D = re.compile(r"transformer\.h\.\d+\.(?:attn|mlp)\.(c_attn|c_fc|c_proj)\.weight")


def adapt_gpt2(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Matrices are transposed; those of queries, keys and values lie in one. The first checkpoints have no prefix.

    A LoRA adapter's B, which has the layer's outputs as rows, is not.
    """
    outputs = {"c_attn": 3 * config.n_embd, "c_fc": config.n_inner or 4 * config.n_embd, "c_proj": config.n_embd}
    found: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = key if key.startswith(("transformer.", "lm_head.")) else f"transformer.{key}"
        if _MASK.fullmatch(name):
            continue
        matrix = _CONV1D.fullmatch(name)
        if matrix and tensor.shape[1:] == (outputs[matrix[1]],):
            tensor = tensor.transposed()
        parts = dict.fromkeys(("q_proj", "k_proj", "v_proj"), config.n_embd)
        found |= divided(name, tensor, "c_attn", parts) if ".c_attn." in name else {name: tensor}
    return without_redundant(found, config, embedding="transformer.wte.weight")
