"""How the dimensions of weights are divided among the ranks of a tensor-parallel group (Shoeybi et al., 2019).

A layer with `shard(group)` keeps this rank's part of its parameters and says in `shards` which part of a checkpoint's
tensors that is. It is called once, while the module is on the meta device; with a single rank never.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.errors import InvalidSettingError

__all__ = ["Heads", "Shard", "Shardable", "Split", "as_split", "shard_module", "sharded"]

_PIECE = 32  # numbers that stay together where that is possible: a group of quantized weights, a panel of packed ones


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a checkpoint's tensor that a rank keeps: some ranges of one dimension, one after the other."""

    dim: int
    ranges: tuple[slice, ...]


@runtime_checkable
class Shardable(Protocol):
    """A layer that ranks divide, and whatever layers it is made of.

    Attributes:
        shards: names of parameters, as in a checkpoint, with this rank's part of them; empty before `shard`.
    """

    shards: dict[str, Shard]

    def shard(self, group: TensorParallelGroup) -> None:
        """Keeps this rank's part of the parameters, and does from now on what the ranks have to do together."""
        ...


class Split(abc.ABC):
    """A dimension that ranks divide."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """All of it."""

    @abc.abstractmethod
    def part(self, rank: int, num_ranks: int) -> slice:
        """Returns the part of a rank.

        Raises:
            InvalidSettingError: it cannot be divided among so many.
        """

    def sizes(self, num_ranks: int) -> list[int]:
        """Returns the sizes of all ranks' parts."""
        parts = [self.part(rank, num_ranks) for rank in range(num_ranks)]
        return [part.stop - part.start for part in parts]


@dataclass(frozen=True, slots=True)
class _Pieces(Split):
    """About the same for each, in pieces of `_PIECE` where there are enough of them. 99 for two ranks: 49 and 50."""

    size: int

    def part(self, rank: int, num_ranks: int) -> slice:
        piece = _PIECE
        while piece > 1 and (self.size % piece or self.size // piece < num_ranks):
            piece //= 2
        num_pieces = self.size // piece
        if num_pieces < num_ranks:
            raise InvalidSettingError(
                "a layer of the model is too narrow for so many devices",
                found=f"{num_ranks} devices",
                allowed=f"at most {self.size}",
                cure="Load it with fewer devices.",
            )
        return slice(rank * num_pieces // num_ranks * piece, (rank + 1) * num_pieces // num_ranks * piece)


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of an attention layer.

    Each rank has whole key/value heads and the query heads that they serve: of 9 and 3, two ranks have 3 and 1, 6 and
    2. Where there are fewer key/value heads than ranks, several ranks have the same one, and each its share of the
    query heads: of 8 and 2, four ranks have 2 and 1 each.

    Attributes:
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: numbers per head.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def queries(self) -> Split:
        """The dimension of all queries."""
        return _HeadSplit(self, of_queries=True)

    @property
    def keys(self) -> Split:
        """The dimension of all keys, or of all values."""
        return _HeadSplit(self, of_queries=False)

    def part(self, rank: int, num_ranks: int) -> tuple[slice, slice]:
        """Returns a rank's query heads and key/value heads.

        Raises:
            InvalidSettingError: the heads cannot be divided among so many.
        """
        num_heads, num_kv = self.num_heads, self.num_kv_heads
        if num_kv >= num_ranks:
            first, end = rank * num_kv // num_ranks, (rank + 1) * num_kv // num_ranks
            group = num_heads // num_kv
            return slice(first * group, end * group), slice(first, end)
        if num_ranks % num_kv or num_heads % num_ranks:
            allowed = [n for n in range(1, num_heads + 1) if n <= num_kv or (n % num_kv == 0 and num_heads % n == 0)]
            raise InvalidSettingError(
                f"{num_heads} heads with {num_kv} key/value heads cannot be divided among the devices",
                found=f"{num_ranks} devices",
                allowed=allowed,
                cure="Load the model with another number of devices.",
            )
        share, kv_head = num_heads // num_ranks, rank * num_kv // num_ranks
        return slice(rank * share, (rank + 1) * share), slice(kv_head, kv_head + 1)


@dataclass(frozen=True, slots=True)
class _HeadSplit(Split):
    heads: Heads
    of_queries: bool

    @property
    def size(self) -> int:
        return self.heads.head_dim * (self.heads.num_heads if self.of_queries else self.heads.num_kv_heads)

    def part(self, rank: int, num_ranks: int) -> slice:
        queries, keys = self.heads.part(rank, num_ranks)
        heads = queries if self.of_queries else keys
        return slice(heads.start * self.heads.head_dim, heads.stop * self.heads.head_dim)


def as_split(size: int | Split) -> Split:
    """Returns how a dimension is divided that may be of any size."""
    return _Pieces(size) if isinstance(size, int) else size


def sharded(parameter: Tensor, shard: Shard) -> nn.Parameter:
    """Returns a parameter of the size of a part."""
    shape = list(parameter.shape)
    shape[shard.dim] = sum(part.stop - part.start for part in shard.ranges)
    return nn.Parameter(parameter.new_empty(shape), requires_grad=False)


def shard_module(module: nn.Module, group: TensorParallelGroup) -> None:
    """Divides a module on the meta device: afterwards it is this rank's part.

    Raises:
        InvalidSettingError: a layer cannot be divided among so many ranks, or no layer can.
    """
    layers = list(_shardable(module))
    if not layers:
        raise InvalidSettingError(
            "the model's plugin does not divide a model among devices",
            found=f"{group.size} devices",
            allowed=1,
            cure="Load it on a single device.",
        )
    for layer in layers:
        layer.shard(group)


def _shardable(module: nn.Module) -> Iterator[Shardable]:
    if isinstance(module, Shardable):
        yield module
        return
    for child in module.children():
        yield from _shardable(child)
