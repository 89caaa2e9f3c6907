"""From the names in a checkpoint to those of `Starcoder2ForCausalLM`.

A checkpoint has the names of transformers' `Starcoder2ForCausalLM`, here with the shapes that the defaults of
`Starcoder2Config` give them; `*` is the number of a layer, or of an expert:

    model.embed_tokens.weight [49152, 3072]
    model.layers.*.self_attn.q_proj.weight [3072, 3072]
    model.layers.*.self_attn.q_proj.bias [3072]
    model.layers.*.self_attn.k_proj.weight [256, 3072]
    model.layers.*.self_attn.k_proj.bias [256]
    model.layers.*.self_attn.v_proj.weight [256, 3072]
    model.layers.*.self_attn.v_proj.bias [256]
    model.layers.*.self_attn.o_proj.weight [3072, 3072]
    model.layers.*.self_attn.o_proj.bias [3072]
    model.layers.*.mlp.c_fc.weight [12288, 3072]
    model.layers.*.mlp.c_fc.bias [12288]
    model.layers.*.mlp.c_proj.weight [3072, 12288]
    model.layers.*.mlp.c_proj.bias [3072]
    model.layers.*.input_layernorm.weight [3072]
    model.layers.*.input_layernorm.bias [3072]
    model.layers.*.post_attention_layernorm.weight [3072]
    model.layers.*.post_attention_layernorm.bias [3072]
    model.norm.weight [3072]
    model.norm.bias [3072]
"""

from __future__ import annotations

from collections.abc import Mapping

from pipezoo_core.weights import LazyTensor, without_redundant
from transformers import PretrainedConfig

__all__ = ["adapt_safetensors"]


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own."""
    return without_redundant(tensors, config)
