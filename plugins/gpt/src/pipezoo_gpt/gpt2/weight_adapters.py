"""From the names in a checkpoint or a GGUF file to those of `GPT2LMHeadModel`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, divided, renamed_from_gguf, without_redundant

__all__ = ["adapt_gpt2", "adapt_gpt2_gguf"]

_MASK = re.compile(r"transformer\.h\.\d+\.attn\.bias")  # old checkpoints store it
_CONV1D = re.compile(r"transformer\.h\.\d+\.(?:attn|mlp)\.(c_attn|c_fc|c_proj)\.weight")
_GGUF_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


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
        found[name] = tensor
    return without_redundant(_without_fused(found, config), config, embedding="transformer.wte.weight")


def adapt_gpt2_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Queries, keys and values lie in one matrix; none is transposed."""
    return _without_fused(renamed_from_gguf(tensors, names=_GGUF_NAMES, layers="transformer.h"), config)


def _without_fused(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    parts = dict.fromkeys(("q_proj", "k_proj", "v_proj"), config.n_embd)
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        found |= divided(name, tensor, "c_attn", parts) if ".c_attn." in name else {name: tensor}
    return found
