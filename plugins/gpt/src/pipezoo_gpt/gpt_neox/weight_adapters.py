"""From the names in a checkpoint to those of `GPTNeoXForCausalLM`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import HEAD, LazyTensor, without_redundant

__all__ = ["adapt_gpt_neox"]

_FUSED = "query_key_value"
_HEAD_IN_FILES = "embed_out.weight"
_MASK = re.compile(r"gpt_neox\.layers\.\d+\.attention\.bias")  # old checkpoints store it


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


def _by_part(name: str, tensor: LazyTensor, num_heads: int) -> dict[str, LazyTensor]:
    size = tensor.shape[0] // (3 * num_heads)
    return {
        name.replace(_FUSED, part): tensor.rows(
            *(slice(first, first + size) for first in range(i * size, tensor.shape[0], 3 * size))
        )
        for i, part in enumerate(("q_proj", "k_proj", "v_proj"))
    }
