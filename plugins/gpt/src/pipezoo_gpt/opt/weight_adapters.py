"""From the names in a checkpoint to those of `OPTForCausalLM`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, without_redundant

__all__ = ["adapt_opt"]

_EMBEDDING = "model.decoder.embed_tokens.weight"
_OF_THE_MLP = re.compile(r"(model\.decoder\.layers\.\d+\.)(fc[12]\.\w+)")


def adapt_opt(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The two linears of a feed-forward layer lie in a module of their own; the oldest names have no prefix."""
    found: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = f"model.{key}" if key.startswith("decoder.") else key
        found[_OF_THE_MLP.sub(r"\1mlp.\2", name)] = tensor
    return without_redundant(found, config, embedding=_EMBEDDING)
