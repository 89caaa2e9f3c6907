"""The two ends of a language model: from tokens to rows, and from rows to logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.layers.linear import Linear, Product
from pipezoo_core.layers.split import Shard, as_split, sharded
from pipezoo_core.layers.stored import StoredWeight

__all__ = ["Embedding", "LMHead", "PositionEmbedding", "VocabParallelEmbedding"]


class Embedding(nn.Module):
    """A row per token of the vocabulary.

    Args:
        vocab_size: rows.
        size: numbers per row.

    Attributes:
        stored: see `Linear`; of one type.
        has_head: whether a head shares the weight, which then gives it its form.
    """

    stored: Sequence[StoredWeight] = ()
    has_head: bool = False
    _lookup: Callable[[Tensor], Tensor] | None = None  # in place of the weight's rows

    def __init__(self, vocab_size: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, size))

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps int64 [T] to [T, size]."""
        return F.embedding(tokens, self.weight) if self._lookup is None else self._lookup(tokens)

    def look_up_with(self, lookup: Callable[[Tensor], Tensor]) -> None:
        """Takes rows from `lookup` from now on; lets go of the plain ones."""
        self._lookup = lookup
        if self.stored:
            self.stored = ()
        else:
            del self.weight

    def keep(self, stored: Sequence[StoredWeight]) -> None:
        """Has a file's rows in place of a plain weight, until `look_up_with` is called."""
        self.stored = stored
        del self.weight


class PositionEmbedding(nn.Module):
    """A learned row per position, which all ranks have.

    Args:
        num_positions: that a request may have.
        size: numbers per row.
        offset: rows of the checkpoint before that of position 0, 2 in OPT.
    """

    def __init__(self, num_positions: int, size: int, offset: int = 0) -> None:
        super().__init__()
        self.offset = offset
        self.weight = nn.Parameter(torch.empty(num_positions + offset, size))

    def forward(self, positions: Tensor) -> Tensor:
        """Maps int64 [T] to [T, size]."""
        return F.embedding(positions, self.weight[self.offset :])


class VocabParallelEmbedding(Embedding):
    """An `Embedding` whose rows the ranks of a group divide: each looks up the tokens that it has, and adds zeros else.

    Args:
        vocab_size: rows.
        size: numbers per row.
        scale: what the rows are multiplied with; rounded to the precision of the run before, as in transformers'
            `modeling_gemma`. A head that shares the weight has it without.
    """

    def __init__(self, vocab_size: int, size: int, *, scale: float = 1.0) -> None:
        super().__init__(vocab_size, size)
        self.scale = scale
        self.shards: dict[str, Shard] = {}
        self._rows = slice(0, vocab_size)
        self._group: TensorParallelGroup | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps int64 [T] to [T, size]."""
        rows = self._all_rows(tokens)
        return rows if self.scale == 1 else rows.mul_(_rounded(self.scale, rows.dtype))  # its own

    def _all_rows(self, tokens: Tensor) -> Tensor:
        if self._group is None:
            return super().forward(tokens)
        elsewhere = (tokens < self._rows.start) | (tokens >= self._rows.stop)
        rows = super().forward((tokens - self._rows.start).masked_fill_(elsewhere, 0))
        return self._group.all_reduce(rows.masked_fill_(elsewhere.unsqueeze(-1), 0))

    def shard(self, group: TensorParallelGroup) -> None:
        """Keeps this rank's rows."""
        self._group = group
        self._rows = as_split(len(self.weight)).part(group.rank, group.size)
        self.shards = {"weight": Shard(0, (self._rows,))}
        self.weight = sharded(self.weight, self.shards["weight"])


class LMHead(Linear):
    """The linear layer that computes logits, [..., in_features] to [..., vocab_size]. It may share a weight.

    A backend may return them in float32, whatever the dtype of the model. The ranks of a group divide the vocabulary;
    rank 0 gets all logits, and the others something to ignore.

    Args:
        in_features: numbers per input row.
        vocab_size: logits per row.
        bias: whether there is one.
        scale: what the logits are multiplied with.
        softcap: afterwards they become `softcap · tanh(logits / softcap)` (Gemma 2); None to leave them.
    """

    _shared: tuple[Embedding, ...] = ()  # in a tuple, so that it is no submodule
    _group: TensorParallelGroup | None = None

    def __init__(
        self,
        in_features: int,
        vocab_size: int,
        *,
        bias: bool = False,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> None:
        super().__init__(in_features, vocab_size, bias=bias)
        self.scale = scale
        self.softcap = softcap
        self.shards: dict[str, Shard] = {}
        self._sizes = [vocab_size]

    def forward(self, x: Tensor) -> Tensor:
        """Maps [rows, in_features] to [rows, vocab_size]."""
        logits = super().forward(x)
        if self._group is not None:
            logits = self._group.gather(logits, self._sizes)
        if self.scale != 1:
            logits.mul_(self.scale)  # its own: rows of logits are long
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def shard(self, group: TensorParallelGroup) -> None:
        """Keeps this rank's rows; those of an embedding that it shares, which is divided before."""
        split = as_split(self.out_features)
        self._group = group
        self._sizes = split.sizes(group.size)
        self.out_features = self._sizes[group.rank]
        rows = Shard(0, (split.part(group.rank, group.size),))
        if self._shared:
            self.weight = self._shared[0].weight
        else:
            self.shards["weight"] = rows
            self.weight = sharded(self.weight, rows)
        if self.bias is not None:
            self.shards["bias"] = rows
            self.bias = sharded(self.bias, rows)
        assert len(self.weight) == self.out_features

    @classmethod
    def sharing(
        cls, embedding: Embedding, *, bias: bool = False, scale: float = 1.0, softcap: float | None = None
    ) -> Self:
        """Returns a head whose weight is the embedding's."""
        vocab_size, size = embedding.weight.shape
        head = cls(size, vocab_size, bias=bias, scale=scale, softcap=softcap)
        head.weight = embedding.weight
        head._shared = (embedding,)
        embedding.has_head = True
        return head

    @property
    def shared(self) -> tuple[Embedding, ...]:
        """The embedding that has the same weight, if there is one."""
        return self._shared

    def compute_with(self, product: Product) -> None:
        """As in `Linear`; an embedding that shares the weight looks its rows up in the product's form of it."""
        super().compute_with(product)
        for embedding in self._shared:
            if product.rows is not None:
                embedding.look_up_with(product.rows)


def _rounded(number: float, dtype: torch.dtype) -> float:
    """Returns the number of a dtype that is nearest. No tensor is made: nothing is to be recorded."""
    num_bits = 1 - round(math.log2(torch.finfo(dtype).eps))
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(mantissa * 2**num_bits), exponent - num_bits)
