"""The two ends of a language model: from tokens to rows, and from rows to logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipezoo_core.layers.linear import Linear, Product

__all__ = ["Embedding", "LMHead"]


class Embedding(nn.Module):
    """A row per token of the vocabulary.

    Args:
        vocab_size: rows.
        size: numbers per row.
    """

    def __init__(self, vocab_size: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, size))
        self._lookup: Callable[[Tensor], Tensor] = self._plain

    def _plain(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps int64 [T] to [T, size]."""
        return self._lookup(tokens)

    def look_up_with(self, lookup: Callable[[Tensor], Tensor]) -> None:
        """Takes rows from `lookup` from now on; lets go of the plain ones."""
        self._lookup = lookup
        del self.weight


class LMHead(Linear):
    """The linear layer that computes logits, [..., in_features] to [..., vocab_size]. It may share a weight.

    A backend may return them in float32, whatever the dtype of the model.
    """

    _shared: tuple[Embedding, ...] = ()  # in a tuple, so that it is no submodule

    @classmethod
    def sharing(cls, embedding: Embedding) -> Self:
        """Returns a head whose weight is the embedding's."""
        vocab_size, size = embedding.weight.shape
        head = cls(size, vocab_size)
        head.weight = embedding.weight
        head._shared = (embedding,)
        return head

    @property
    def is_shared(self) -> bool:
        """Whether an embedding has the same weight."""
        return bool(self._shared)

    def compute_with(self, product: Product) -> None:
        """As in `Linear`; an embedding that shares the weight looks its rows up in the product's form of it."""
        super().compute_with(product)
        for embedding in self._shared:
            if product.rows is not None:
                embedding.look_up_with(product.rows)
