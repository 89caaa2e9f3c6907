"""From the names in a checkpoint to those of `GPTJForCausalLM`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.layers import halves
from pipezoo_core.weights import LazyTensor, without_redundant

__all__ = ["adapt_gptj"]

_MASK = re.compile(r"transformer\.h\.\d+\.attn\.bias")  # old checkpoints store it
_ROTATED = re.compile(r".*\.attn\.[qk]_proj\.weight")


def adapt_gptj(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own; q and k are stored for a rotation of neighbours."""
    head_dim = config.n_embd // config.n_head
    in_halves = halves(head_dim, config.rotary_dim)
    found = {
        name: tensor.then(in_halves, num_rows=head_dim) if _ROTATED.fullmatch(name) else tensor
        for name, tensor in tensors.items()
        if not _MASK.fullmatch(name)
    }
    return without_redundant(found, config, embedding="transformer.wte.weight")
