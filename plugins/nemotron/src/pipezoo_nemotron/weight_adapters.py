"""From the names in a checkpoint to those of `NemotronForCausalLM`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, with_experts_unstacked, without_redundant

__all__ = ["adapt_safetensors"]

_NAMES = (
    (re.compile(r"^backbone\."), "model."),
    (re.compile(r"\.mixer\.(A_log|dt_bias|D)$"), r".mixer.scan.\1"),
)
_FURTHER = "mtp."  # layers that predict further tokens


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Published files have one tensor for each expert, transformers' one of all.

    Layers that predict further tokens are left out.
    """
    found: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = key
        for theirs, ours in _NAMES:
            name = theirs.sub(ours, name)
        if not name.startswith(_FURTHER):
            found[name] = tensor
    return without_redundant(with_experts_unstacked(found), config, embedding="model.embeddings.weight")
