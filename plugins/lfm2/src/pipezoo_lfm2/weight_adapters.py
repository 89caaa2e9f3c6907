"""From the names in a checkpoint to those of `Lfm2ForCausalLM`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, without_redundant

__all__ = ["adapt_safetensors"]

_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_FEED_FORWARD = re.compile(r"(?<=\.feed_forward\.)w[123](?=\.)")


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own, but for those of the feed-forward layers."""
    named = {_FEED_FORWARD.sub(lambda match: _NAMES[match[0]], name): tensor for name, tensor in tensors.items()}
    return without_redundant(named, config)
