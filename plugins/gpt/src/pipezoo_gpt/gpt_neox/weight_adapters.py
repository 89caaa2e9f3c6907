"""From the names in a checkpoint or a GGUF file to those of `GPTNeoXForCausalLM`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import HEAD, LazyTensor, divided, renamed_from_gguf, without_redundant

__all__ = ["adapt_gpt_neox", "adapt_gpt_neox_gguf"]

_FUSED = "query_key_value"
_SORTED = "qkv_proj"  # of GGUF
_PARTS = ("q_proj", "k_proj", "v_proj")
_HEAD_IN_FILES = "embed_out.weight"
_MASK = re.compile(r"gpt_neox\.layers\.\d+\.attention\.bias")  # old checkpoints store it
_GGUF_NAMES = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "attn_qkv": f"attention.{_SORTED}",
    "attn_output": "attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}


def adapt_gpt_neox(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Queries, keys and values of each head lie in one matrix, those of a head after those of another.

    Of two heads with two rows each, the rows are q0 q0 k0 k0 v0 v0 q1 q1 k1 k1 v1 v1.
    """
    found: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = HEAD if key == _HEAD_IN_FILES else key
        if _MASK.fullmatch(name):
            continue
        if f".{_FUSED}." in name and tensor.shape[0] == 3 * config.hidden_size:
            found |= _by_part(name, tensor, config.num_attention_heads)
        else:
            found[name] = tensor
    return without_redundant(found, config, embedding="gpt_neox.embed_in.weight")


def adapt_gpt_neox_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Of the one matrix, the queries of all heads come first, then the keys, then the values.

    A LoRA adapter has the names and the order of the other checkpoints.
    """
    parts = dict.fromkeys(_PARTS, config.hidden_size)
    found: dict[str, LazyTensor] = {}
    for name, tensor in renamed_from_gguf(tensors, names=_GGUF_NAMES, layers="gpt_neox.layers").items():
        found |= divided(name, tensor, _SORTED, parts) if f".{_SORTED}." in name else {name: tensor}
    return adapt_gpt_neox(found, config)


def _by_part(name: str, tensor: LazyTensor, num_heads: int) -> dict[str, LazyTensor]:
    size = tensor.shape[0] // (3 * num_heads)
    return {
        name.replace(_FUSED, part): tensor.rows(
            *(slice(first, first + size) for first in range(i * size, tensor.shape[0], 3 * size))
        )
        for i, part in enumerate(_PARTS)
    }
