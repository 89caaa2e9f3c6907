"""From the names in a checkpoint or a GGUF file to those of `GPTNeoXForCausalLM`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import HEAD, LazyTensor, without_redundant
from pipezoo_gpt.fused_heads import SORTED, divided_by_head, divided_from_gguf
from pipezoo_gpt.gpt_neox.config import GPTNeoXConfig

__all__ = ["adapt_gpt_neox", "adapt_gpt_neox_gguf"]

_HEAD_IN_FILES = "embed_out.weight"
_MASK = re.compile(r"gpt_neox\.layers\.\d+\.attention\.bias")  # old checkpoints store it
_GGUF_NAMES = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "attn_qkv": f"attention.{SORTED}",
    "attn_output": "attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}


def adapt_gpt_neox(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Queries, keys and values of each head lie in one matrix, those of a head after those of another.

    Of two heads with two rows each, the rows are q0 q0 k0 k0 v0 v0 q1 q1 k1 k1 v1 v1.
    """
    heads = GPTNeoXConfig.from_huggingface(config).heads
    found: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = HEAD if key == _HEAD_IN_FILES else key
        if not _MASK.fullmatch(name):
            found |= divided_by_head(name, tensor, heads)
    return without_redundant(found, config, embedding="gpt_neox.embed_in.weight")


def adapt_gpt_neox_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Of the one matrix, the queries of all heads come first, then the keys, then the values.

    A LoRA adapter has the names and the order of the other checkpoints.
    """
    heads = GPTNeoXConfig.from_huggingface(config).heads
    found = divided_from_gguf(tensors, heads, names=_GGUF_NAMES, layers="gpt_neox.layers")
    return adapt_gpt_neox(found, config)
