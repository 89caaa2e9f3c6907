"""From the names in a checkpoint to those of `StableLmForCausalLM`.

A checkpoint has the names of transformers' `StableLmForCausalLM`, here with the shapes that the defaults of
`StableLmConfig` give them; `*` is the number of a layer, or of an expert:

    model.embed_tokens.weight [50304, 2560]
    model.layers.*.self_attn.q_proj.weight [2560, 2560]
    model.layers.*.self_attn.k_proj.weight [2560, 2560]
    model.layers.*.self_attn.v_proj.weight [2560, 2560]
    model.layers.*.self_attn.o_proj.weight [2560, 2560]
    model.layers.*.mlp.gate_proj.weight [6912, 2560]
    model.layers.*.mlp.up_proj.weight [6912, 2560]
    model.layers.*.mlp.down_proj.weight [2560, 6912]
    model.layers.*.input_layernorm.weight [2560]
    model.layers.*.input_layernorm.bias [2560]
    model.layers.*.post_attention_layernorm.weight [2560]
    model.layers.*.post_attention_layernorm.bias [2560]
    model.norm.weight [2560]
    model.norm.bias [2560]
    lm_head.weight [50304, 2560]

With `qk_layernorm` there is a norm for each head: `model.layers.*.self_attn.q_layernorm.norms.*.weight [80]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipezoo_core.weights import LazyTensor, concatenated, without_redundant
from transformers import PretrainedConfig

__all__ = ["adapt_safetensors"]

_NORM_OF_A_HEAD = re.compile(r"(.+\.[qk]_layernorm)\.norms\.(\d+)\.weight")


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own, but for the norms of heads: the module has one weight for all of them."""
    found: dict[str, LazyTensor] = {}
    norms: dict[str, dict[int, LazyTensor]] = {}
    for name, tensor in tensors.items():
        match = _NORM_OF_A_HEAD.fullmatch(name)
        if match is None:
            found[name] = tensor
        else:
            norms.setdefault(match[1], {})[int(match[2])] = tensor
    for layer, of_heads in norms.items():
        found[f"{layer}.weight"] = concatenated([of_heads[head] for head in sorted(of_heads)])
    return without_redundant(found, config)
