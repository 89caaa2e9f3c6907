"""What an adapter adds to a linear layer: `y += x Aᵀ Bᵀ · scaling` (Hu et al., 2021), for the rows that use it.

Shape suffixes: T tokens of all requests in a row, R rank, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipezoo_core.errors import TensorMismatchError
from pipezoo_core.layers import Experts, LatentHeads, Linear, LMHead, MergedLinear, Shard, Shardable

__all__ = [
    "NO_LORA",
    "LoRABatch",
    "LoRAGroup",
    "LoRALayer",
    "LoRATarget",
    "adaptable_layers",
    "group_rows",
    "numbers_while_added",
]

NO_LORA = -1
"""In `lora_ids`: the request uses the model as it is."""


@dataclass(frozen=True, slots=True)
class LoRAGroup:
    """The rows of one step that use one adapter.

    Attributes:
        slot: of the adapter.
        rank: of the adapter.
        rows: a slice where they are in a row, else int64 [n].
    """

    slot: int
    rank: int
    rows: slice | Tensor


@dataclass(slots=True)
class LoRABatch:
    """The running step's adapters. `AdaptedModule` owns it and sets it for a step; the layers were given it to read.

    Attributes:
        groups: one per adapter; empty between steps, and for a step without adapters.
        num_rows: of the step.
    """

    groups: Sequence[LoRAGroup] = ()
    num_rows: int = 0

    @contextmanager
    def of_rows(self, rows: Tensor) -> Iterator[None]:
        """Makes the layers compute some of the step's rows, as long as the context lasts: those of an expert.

        Adapter 0 has the step's rows 0, 4 and 5: of an expert's rows 1, 4 and 5 it has the last two.

        Args:
            rows: int64 [n], their numbers in the step.
        """
        whole = self.groups, self.num_rows
        if self.groups:
            self.groups = [LoRAGroup(group.slot, group.rank, _places(group.rows, rows)) for group in self.groups]
            self.num_rows = len(rows)
        try:
            yield
        finally:
            self.groups, self.num_rows = whole


def _places(of_group: slice | Tensor, rows: Tensor) -> Tensor:
    if isinstance(of_group, slice):
        return ((rows >= of_group.start) & (rows < of_group.stop)).nonzero().flatten()
    return torch.isin(rows, of_group).nonzero().flatten()


def group_rows(
    lora_ids: Sequence[int], lora_ranks: Sequence[int], row_offsets: Sequence[int], device: torch.device
) -> list[LoRAGroup]:
    """Groups a step's rows by adapter.

    Four requests with 1, 2, 1 and 3 rows, whose `lora_ids` are [0, 1, NO_LORA, 0] and whose `row_offsets` are
    [0, 1, 3, 4, 7]: adapter 0 has rows 0, 4, 5 and 6, adapter 1 the slice from 1 to 3, and row 3 is in no group.
    """
    segments: dict[int, list[tuple[int, int]]] = {}
    ranks: dict[int, int] = {}
    for slot, rank, (start, end) in zip(lora_ids, lora_ranks, pairwise(row_offsets), strict=True):
        if slot == NO_LORA:
            continue
        ranks[slot] = rank
        of_slot = segments.setdefault(slot, [])
        if of_slot and of_slot[-1][1] == start:
            start = of_slot.pop()[0]
        of_slot.append((start, end))
    return [LoRAGroup(slot, ranks[slot], _rows(of_slot, device)) for slot, of_slot in segments.items()]


def _rows(segments: Sequence[tuple[int, int]], device: torch.device) -> slice | Tensor:
    if len(segments) == 1:
        return slice(*segments[0])
    rows = [row for segment in segments for row in range(*segment)]
    return torch.tensor(rows, dtype=torch.int64, device=device)


class LoRALayer:
    """The slots of a layer: A and B of each adapter that may be in use.

    All of a merged layer's parts are added by one pair of products, because short products cost more in number than in
    size. Rows of A and of Bᵀ lie rank by rank, part by part, so that the first `rank · parts` rows are those of an
    adapter. For parts q and v, of 3 and 2 columns, with rank 2:

        A    Bᵀ
        q0   q q q . .
        v0   . . . v v
        q1   q q q . .
        v1   . . . v v

    Args:
        batch: where the step's adapters are read.
        in_features: numbers per row that A is multiplied with.
        sizes: name -> out_features of its parts; one for a layer that is not merged.
        num_slots: adapters that there is room for.
        max_rank: the greatest rank there is room for.
        device: where the layer computes.
        dtype: of its rows.
    """

    @torch.inference_mode(mode=False)  # slots are filled at any time, also outside a caller's inference mode
    def __init__(
        self,
        batch: LoRABatch,
        in_features: int,
        sizes: Mapping[str, int],
        *,
        num_slots: int,
        max_rank: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._batch = batch
        self._sizes = dict(sizes)
        rows = max_rank * len(sizes)
        self.a = torch.zeros(num_slots, rows, in_features, device=device, dtype=dtype)
        self.b = torch.zeros(num_slots, rows, sum(sizes.values()), device=device, dtype=dtype)
        self._filled: set[int] = set()

    def empty(self, slot: int) -> None:
        """Makes the layer add nothing for a slot."""
        if slot in self._filled:
            self._filled.remove(slot)
            self.a[slot].zero_()
            self.b[slot].zero_()

    def fill(self, slot: int, name: str, a: Tensor, b: Tensor) -> None:
        """Puts an adapter's A [R, I], and B [O, R] times the scaling, of a part into a slot, which is empty there."""
        index, num_parts = list(self._sizes).index(name), len(self._sizes)
        start = sum(list(self._sizes.values())[:index])
        rows = slice(index, len(a) * num_parts, num_parts)
        self.a[slot, rows] = a.to(self.a)
        self.b[slot, rows, start : start + self._sizes[name]] = b.T.to(self.b)
        self._filled.add(slot)

    def of_step(self, num_rows: int) -> Iterator[tuple[slice | Tensor, Tensor, Tensor]]:
        """Yields for each adapter of the step that changes this layer its rows, A [R, I] and B [R, O].

        Raises:
            TensorMismatchError: the layer computes so many rows, which are not those of the step.
        """
        if self._batch.groups and num_rows != self._batch.num_rows:
            raise TensorMismatchError(
                f"the layer {', '.join(self._sizes)} computes other rows than the step's, so that it is not known "
                "whose adapters are to be added",
                found=f"{num_rows} rows",
                allowed=f"all {self._batch.num_rows} rows of the step",
                cure="Serve this model without LoRA adapters.",
            )
        for group in self._batch.groups:
            if group.slot in self._filled:
                rank = group.rank * len(self._sizes)
                yield group.rows, self.a[group.slot, :rank], self.b[group.slot, :rank]

    def add(self, x_TI: Tensor, y_TO: Tensor) -> None:
        """Adds the step's adapters to a `Linear`'s product y of x, in place.

        Raises:
            TensorMismatchError: as of `of_step`.
        """
        for rows, a, b in self.of_step(len(x_TI)):
            low = x_TI[rows] @ a.T
            if isinstance(rows, slice):
                y_TO[rows].addmm_(low, b)
            else:
                y_TO.index_add_(0, rows, low @ b)


@dataclass(frozen=True, slots=True)
class LoRATarget:
    """A layer that adapters are trained on: a linear layer of the module, or one of those that are merged in it.

    Attributes:
        shape: out_features and in_features of all of it.
        out_features: of this rank's part.
        shard: which part of its weight that is; None for all of it.
    """

    shape: tuple[int, int]
    out_features: int
    shard: Shard | None

    def part(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Returns of A [R, in_features] and B [out_features, R] what belongs to this rank's part."""
        if self.shard is None:
            return a, b
        if self.shard.dim == 0:
            return a, torch.cat([b[rows] for rows in self.shard.ranges])
        return torch.cat([a[:, columns] for columns in self.shard.ranges], dim=1), b


def adaptable_layers(
    module: nn.Module, *, experts: bool = False
) -> Iterator[tuple[Linear | LatentHeads, dict[str, LoRATarget]]]:
    """Yields the layers that adapters change, with the name of each layer that it is, or that is merged in it.

    Args:
        module: all of whose layers are meant but the head.
        experts: whether those of a mixture's experts are, too.
    """
    merged: set[nn.Module] = set()
    mixtures = () if experts else [mixture for mixture in module.modules() if isinstance(mixture, Experts)]
    in_experts = {part for mixture in mixtures for part in mixture.modules()}
    for name, child in module.named_modules():
        if child in in_experts:
            continue
        if isinstance(child, MergedLinear):
            merged.add(child.merged)
            parent = name.rpartition(".")[0]
            yield (
                child.merged,
                {
                    f"{parent}.{part}".lstrip("."): LoRATarget(
                        (child.full_parts[part], child.merged.in_features), size, child.shards.get(f"{part}.weight")
                    )
                    for part, size in child.parts.items()
                },
            )
        elif isinstance(child, Linear) and not isinstance(child, LMHead) and child not in merged:
            shards = child.shards if isinstance(child, Shardable) else {}
            yield child, {name: LoRATarget(child.full_shape, child.out_features, shards.get("weight"))}
        elif isinstance(child, LatentHeads):
            yield child, {name: LoRATarget(child.full_shape, child.out_features, child.shards.get("weight"))}


def numbers_while_added(layer: Linear | LatentHeads, num_parts: int, max_rank: int) -> int:
    """Returns the most numbers per row that there are while an adapter is added to a layer's product, besides this.

    Args:
        layer: see `adaptable_layers`.
        num_parts: merged in it.
        max_rank: of an adapter.
    """
    rank = num_parts * max_rank
    if isinstance(layer, LatentHeads):  # to and from a latent for each head
        num_heads = layer.out_features // sum(layer.sizes)
        return num_heads * (rank + max(*layer.sizes, layer.in_features))
    return rank + max(layer.in_features, layer.out_features)
