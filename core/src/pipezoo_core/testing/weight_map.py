"""Which tensors of a checkpoint each of the module's tensors is made of, found by reading them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pipezoo_core.config import WeightsFormat
from pipezoo_core.testing.subject import Subject
from pipezoo_core.weights import LazyTensor

__all__ = ["is_among", "unread_tensors", "weight_map"]


def weight_map(subject: Subject) -> dict[str, set[str]]:
    """Returns for each tensor that the weight adapter makes the names of the checkpoint's tensors that it reads.

    Whatever an adapter does, renames, divides, joins or transposes, this sees it: every tensor is read once.
    """
    seen: set[str] = set()
    watched = {name: _watched(name, tensor, seen) for name, tensor in subject.weights.items()}
    adapter = subject.architecture.weight_adapters[WeightsFormat.safetensors]
    sources: dict[str, set[str]] = {}
    for name, tensor in adapter(watched, subject.huggingface_config).items():
        seen.clear()
        tensor.load()
        sources[name] = set(seen)
    return sources


def unread_tensors(subject: Subject, sources: Mapping[str, set[str]]) -> list[str]:
    """Returns the checkpoint's weights that nothing is made of.

    Left out are copies of others that are read, and what logits of text do not depend on in the reference: a part that
    sees images, say.
    """
    weights = subject.weights
    read: set[str] = set().union(*sources.values())
    copies = [weights[name].load() for name in read]
    copies += [each.detach() for each in subject.reference.parameters() if each.data_ptr() not in subject.of_text]
    return [
        name
        for name in sorted(weights.keys() - read)
        if weights[name].dtype.is_floating_point and not is_among(weights[name].load(), copies)
    ]


def is_among(tensor: Tensor, others: list[Tensor]) -> bool:
    """Whether one of several tensors has the same shape and numbers."""
    return any(other.shape == tensor.shape and torch.equal(other, tensor) for other in others)


def _watched(name: str, tensor: LazyTensor, seen: set[str]) -> LazyTensor:
    read, read_vectors = tensor.read, tensor.read_vectors

    def watched_read(rows: slice) -> Tensor:
        seen.add(name)
        return read(rows)

    def watched_vectors(rows: slice) -> Tensor:
        assert read_vectors is not None
        seen.add(name)
        return read_vectors(rows)

    return replace(tensor, read=watched_read, read_vectors=None if read_vectors is None else watched_vectors)
