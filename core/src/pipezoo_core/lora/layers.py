"""What an adapter adds to a linear layer: `y += x Aᵀ Bᵀ · scaling` (Hu et al., 2021), for the rows that use it.

Shape suffixes: T tokens of all requests in a row, R rank, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipezoo_core.layers import Linear, LMHead, MergedLinear

__all__ = ["NO_LORA", "LoRABatch", "LoRAGroup", "LoRALinear", "LoRAPart", "adaptable_layers", "group_rows"]

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
    """The running step's adapters. The manager owns it and sets it for a step; the layers were given it to read.

    Attributes:
        groups: one per adapter; empty between steps, and for a step without adapters.
    """

    groups: Sequence[LoRAGroup] = ()


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
    return torch.tensor([row for segment in segments for row in range(*segment)], device=device)


@dataclass(slots=True)
class LoRAPart:
    """One of a checkpoint's linear layers: all columns of a `Linear`, or some of a merged one.

    Attributes:
        layer: what it belongs to.
        columns: of the layer's output.
        a: [slots, R, I], zeros below an adapter's own rank.
        b: [slots, R, O], that is Bᵀ, times the scaling.
    """

    layer: LoRALinear
    columns: slice
    a: Tensor
    b: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Out_features and in_features."""
        return self.b.shape[-1], self.a.shape[-1]

    def fill(self, slot: int, a: Tensor, b: Tensor, scaling: float) -> None:
        """Puts an adapter's A [R, I] and B [O, R] into a slot."""
        rank = len(a)
        for matrices, values in ((self.a, a.float()), (self.b, b.float().T * scaling)):
            matrices[slot].zero_()
            matrices[slot, :rank].copy_(values)
        self.layer.parts_of.setdefault(slot, []).append(self)

    def add(self, x_TI: Tensor, y_TO: Tensor, group: LoRAGroup) -> None:
        """Adds the adapter to y's rows of the group; `x_TI` has these rows only."""
        low_TR = x_TI @ self.a[group.slot, : group.rank].T
        b_RO = self.b[group.slot, : group.rank]
        y_TO = y_TO[:, self.columns]
        if isinstance(group.rows, slice):
            y_TO[group.rows].addmm_(low_TR, b_RO)
        else:
            y_TO.index_add_(0, group.rows, low_TR @ b_RO)


class LoRALinear:
    """Adds the step's adapters to what a `Linear` computes, however it does.

    Args:
        linear: the layer.
        batch: where the step's adapters are read.
        sizes: name -> out_features of its parts; one for a layer that is not merged.
        num_slots: adapters that there is room for.
        max_rank: the greatest rank there is room for.
        device: where the layer computes.
        dtype: of its rows.

    Attributes:
        parts: by name, in the order of the output's columns.
        parts_of: slot -> the parts that its adapter changes.
    """

    @torch.inference_mode(mode=False)  # slots are filled at any time, also outside a caller's inference mode
    def __init__(
        self,
        linear: Linear,
        batch: LoRABatch,
        sizes: Mapping[str, int],
        *,
        num_slots: int,
        max_rank: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._batch = batch
        self.parts: dict[str, LoRAPart] = {}
        self.parts_of: dict[int, list[LoRAPart]] = {}
        start = 0
        for name, size in sizes.items():
            a = torch.zeros(num_slots, max_rank, linear.in_features, device=device, dtype=dtype)
            b = torch.zeros(num_slots, max_rank, size, device=device, dtype=dtype)
            self.parts[name] = LoRAPart(self, slice(start, start + size), a, b)
            start += size
        linear.add_to_product(self._add)

    def _add(self, x_TI: Tensor, y_TO: Tensor) -> None:
        for group in self._batch.groups:
            parts = self.parts_of.get(group.slot)
            if parts:
                rows = x_TI[group.rows]
                for part in parts:
                    part.add(rows, y_TO, group)


def adaptable_layers(module: nn.Module) -> Iterator[tuple[Linear, dict[str, int]]]:
    """Yields every linear layer but the head, with the name and out_features of each layer that is merged in it."""
    merged: set[nn.Module] = set()
    for name, child in module.named_modules():
        if isinstance(child, MergedLinear):
            merged.add(child.merged)
            parent = name.rpartition(".")[0]
            yield child.merged, {f"{parent}.{part}".lstrip("."): size for part, size in child.parts.items()}
        elif isinstance(child, Linear) and not isinstance(child, LMHead) and child not in merged:
            yield child, {name: child.out_features}
