"""Which layers keep what a file has quantized, and the memory for it; the others are dequantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Literal

import torch
from torch import nn

from pipezoo_core.config import SupportedEncoding
from pipezoo_core.layers.embedding import Embedding
from pipezoo_core.layers.linear import ColumnParallelLinear, Linear, MergedLinear
from pipezoo_core.layers.linear_backends import rounded_bits
from pipezoo_core.layers.stored import StoredType, StoredWeight
from pipezoo_core.native import MemoryPool

__all__ = ["Kept", "keep_outline", "kept_layers", "rounded_names", "stored_runs"]

Kept = Mapping["Linear | Embedding", Sequence[str]]
"""Layers that have a file's rows in place of a weight, with the names of the tensors that these are, in their order."""


def kept_layers(module: nn.Module, types: Mapping[str, StoredType]) -> dict[Linear | Embedding, list[str]]:
    """Returns the layers all of whose rows a file has in types that there is a packed form for.

    Args:
        module: on the meta device.
        types: of the tensors that a file has quantized, by their names in the module.
    """
    owners: dict[int, list[nn.Module]] = {}
    for layer in module.modules():
        for parameter in layer._parameters.values():
            owners.setdefault(id(parameter), []).append(layer)
    kept: dict[Linear | Embedding, list[str]] = {}
    for layer, names in _names_of_weights(module).items():
        found = [types[name] for name in names if name in types]
        is_ours = all(isinstance(owner, Linear | Embedding) for owner in owners[id(layer.weight)])
        fits = all(each.packing is not None and each.fits(layer.weight.shape[1]) for each in found)
        if is_ours and fits and len(found) == len(names):
            kept[layer] = names
    return kept


def rounded_names(module: nn.Module, encoding: SupportedEncoding) -> dict[str, Literal[8, 4]]:
    """Returns to how many bits a load rounds tensors, by their names in the module; none that it leaves as they are.

    Args:
        module: on the meta device.
        encoding: of the load.
    """
    found: dict[str, Literal[8, 4]] = {}
    for layer, names in _names_of_weights(module).items():
        if isinstance(layer, Linear) and (bits := rounded_bits(layer, encoding)) is not None:
            found |= dict.fromkeys(names, bits)
    return found


def keep_outline(module: nn.Module, types: Mapping[str, StoredType], memory: MemoryPool | None = None) -> None:
    """Gives an outline's layers what `load_module` will give them of a file, without numbers.

    Args:
        module: on the meta device.
        types: see `kept_layers`.
        memory: see `stored_runs`.
    """
    outlines: dict[int, Sequence[StoredWeight]] = {}
    for layer, names in kept_layers(module, types).items():
        identity = id(layer.weight)
        if identity not in outlines:
            kinds = [types[name] for name in names]
            outlines[identity] = stored_runs(kinds, _sizes(layer, names), layer.weight.shape[1], memory)
        layer.keep(outlines[identity])


def stored_runs(
    types: Sequence[StoredType],
    sizes: Sequence[int],
    in_features: int,
    memory: MemoryPool | None = None,
) -> list[StoredWeight]:
    """Returns memory for parts of a weight, one piece for parts that follow each other and are of one layout.

    Q, K and V of types Q4_K, Q4_K and Q6_K are two pieces.

    Args:
        types: of each part.
        sizes: rows of each part.
        in_features: numbers per row.
        memory: where it comes from; None for the meta device.
    """
    found = []
    for _, run in groupby(zip(types, sizes, strict=True), key=lambda part: part[0].layout):
        parts = list(run)
        type_, num_rows = parts[0][0], sum(size for _, size in parts)
        shape = (num_rows, in_features // type_.block * type_.block_bytes)
        if memory is None:
            rows = torch.empty(shape, dtype=torch.uint8, device="meta")
        else:
            rows = memory.empty(shape, torch.uint8)
        found.append(StoredWeight(type_, rows))
    return found


def _sizes(layer: Linear | Embedding, names: Sequence[str]) -> Sequence[int]:
    """Returns the rows of each tensor that a layer's weight is made of; one may hold all parts of a layer."""
    if len(names) == 1:
        return [len(layer.weight)]
    assert isinstance(layer, ColumnParallelLinear)
    return layer.sizes


def _names_of_weights(module: nn.Module) -> dict[Linear | Embedding, list[str]]:
    """Returns the tensors of a checkpoint that each layer's weight is made of; a shared one has its first name."""
    names: dict[Linear | Embedding, list[str]] = {}
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    merged: set[nn.Module] = set()
    for name, layer in module.named_modules():
        if isinstance(layer, MergedLinear):
            prefix = name.rpartition(".")[0]
            names[layer.merged] = [f"{prefix}.{part}.weight".lstrip(".") for part in layer.parts]
            merged.add(layer.merged)
        elif isinstance(layer, Linear | Embedding) and layer not in merged:
            names[layer] = [first[id(layer.weight)]]
    return names
