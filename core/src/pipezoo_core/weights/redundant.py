"""What a file of weights has besides what its model needs.

Tables that can be computed, a head that is tied, and layers that predict further tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from pipezoo_core.weights.base import LazyTensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["HEAD", "without_further_layers", "without_redundant"]

HEAD = "lm_head.weight"
"""What a model's head is called, in a checkpoint and in the module."""

_TABLES = re.compile(r"(?:.*\.)?(?:rotary_emb\..+|masked_bias)")  # old checkpoints store them
_OF_A_LAYER = re.compile(r"(?:blk|model\.layers)\.(\d+)\.(nextn\.|eh_proj\.|enorm\.|hnorm\.)?.+")
_NUMBERS_AT_ONCE = 2**20


def without_redundant(
    tensors: Mapping[str, LazyTensor], config: PretrainedConfig, *, embedding: str = "model.embed_tokens.weight"
) -> dict[str, LazyTensor]:
    """Returns a checkpoint's tensors without tables of RoPE and of masks, and with a tied head only as the embedding.

    Where the config says `tie_word_embeddings`, the one tensor may have either name, or both. A head of other numbers
    than the embedding's stays: the file then decides against the config, as in transformers, and `registry.load` makes
    a model whose head is not tied. To see that, both are read where the file has both.

    Args:
        tensors: by the names of the module.
        config: with `tie_word_embeddings`.
        embedding: the name of the embedding's weight in the module; the head's is `lm_head.weight`.
    """
    found = {name: tensor for name, tensor in tensors.items() if not _TABLES.fullmatch(name)}
    head = found.get(HEAD)
    if head is not None and config.tie_word_embeddings and _are_equal(found.setdefault(embedding, head), head):
        del found[HEAD]
    return found


def without_further_layers(tensors: Mapping[str, LazyTensor], num_layers: int) -> dict[str, LazyTensor]:
    """Returns a checkpoint's tensors without the layers behind the model's that predict further tokens.

    They are known by tensors that no other layer has: `blk.61.nextn.eh_proj.weight`, `model.layers.61.eh_proj.weight`.
    Any other layer behind the model's stays, to be reported as left over.

    Args:
        tensors: by their names in a GGUF file or in safetensors.
        num_layers: of the model.
    """
    layers = {name: _OF_A_LAYER.fullmatch(name) for name in tensors}
    further = {layer[1] for layer in layers.values() if layer and layer[2] and int(layer[1]) >= num_layers}
    return {name: tensor for name, tensor in tensors.items() if not (layer := layers[name]) or layer[1] not in further}


def _are_equal(one: LazyTensor, other: LazyTensor) -> bool:
    """Compares a few rows at a time, and only until they differ."""
    if one is other or one.shape != other.shape:
        return one is other
    pieces = one.pieces(_NUMBERS_AT_ONCE)
    return all(torch.equal(one.read(rows).double(), other.read(rows).double()) for rows in pieces)
