"""What one step needs to know of the KV cache: first as Python lists, then as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipezoo_core.kv_cache.params import KVGroup
from pipezoo_core.recurrence import StateStep

__all__ = ["KVCacheInputs", "RaggedBatch", "StepPlanner", "as_tensors", "build_kv_cache_inputs"]


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """One step's requests on the host, in the order in which the model sees them.

    Three requests with pages of four tokens, the first two decoding, the third beginning a prompt of five:

        active_lengths   [1, 1, 5]            tokens fed this step
        cache_lengths    [6, 3, 0]            tokens in the cache before it
        prompt_lengths   [4, 2, 5]
        pages            [[[0, 1], [2], [3, 4]]]        of each group of layers; here there is one

    Token rows: request 0 owns row 0, request 1 row 1, request 2 rows 2 to 6, so `row_offsets` is [0, 1, 2, 7] and
    the positions are [6, 3, 0, 1, 2, 3, 4]. They are written to the pages [1, 2, 3, 3, 3, 3, 4], at the places
    [2, 3, 0, 1, 2, 3, 0]. With a sliding window of 2, request 0 sees positions 5 and 6, and its
    pages are [NO_PAGE, 1].

    Where layers keep a state, `read_slots` and `write_slots` have a slot for each request, see `StateStep`; else none.
    """

    active_lengths: list[int]
    cache_lengths: list[int]
    prompt_lengths: list[int]
    pages: list[list[list[int]]]
    read_slots: list[int] = field(default_factory=list)
    write_slots: list[int] = field(default_factory=list)

    def as_lists(self) -> list[list[int]]:
        """Writes the batch as lists of whole numbers, which `from_lists` reads."""
        lengths = [self.active_lengths, self.cache_lengths, self.prompt_lengths]
        return [*lengths, self.read_slots, self.write_slots, *chain.from_iterable(self.pages)]

    @classmethod
    def from_lists(cls, lists: Sequence[list[int]]) -> Self:
        """Reads what `as_lists` has written."""
        active_lengths, cache_lengths, prompt_lengths, read_slots, write_slots, *pages = lists
        size = max(1, len(active_lengths))
        by_group = [pages[start : start + size] for start in range(0, len(pages), size)]
        return cls(active_lengths, cache_lengths, prompt_lengths, by_group, read_slots, write_slots)

    @property
    def row_offsets(self) -> list[int]:
        """Where each request's rows begin, and the end."""
        return [0, *accumulate(self.active_lengths)]

    @property
    def positions(self) -> list[int]:
        """The position of each row in its request."""
        return [
            position
            for cached, active in zip(self.cache_lengths, self.active_lengths, strict=True)
            for position in range(cached, cached + active)
        ]

    def cells(self, page_size: int, group: int) -> tuple[list[int], list[int]]:
        """Returns where each row's key and value are written: their pages of a group, and their places in these."""
        spans = zip(self.cache_lengths, self.active_lengths, self.pages[group], strict=True)
        pages = [
            pages[position // page_size]
            for cached, active, pages in spans
            for position in range(cached, cached + active)
        ]
        return pages, [position % page_size for position in self.positions]

    @property
    def context_lengths(self) -> list[int]:
        """For each row the length that its request has then: of its prompt, or up to the row where that is longer."""
        return [
            max(prompt, position + 1)
            for prompt, cached, active in zip(self.prompt_lengths, self.cache_lengths, self.active_lengths, strict=True)
            for position in range(cached, cached + active)
        ]


Plan = TypeVar("Plan")
PlanOut = TypeVar("PlanOut", covariant=True)


class StepPlanner(Protocol[PlanOut]):
    """What the attention of a model says of its pages, and its work once per step instead of once per layer.

    Attributes:
        groups: of layers, each with pages of its own.
        page_layers: for each layer the one whose pages it uses: itself, or one before it; None where it uses none.
    """

    groups: tuple[KVGroup, ...]
    page_layers: tuple[int | None, ...]

    def page_shapes(self, group: int, num_pages: int, page_size: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Returns the shapes of a layer's key and value pages; None for values that lie in the keys."""
        ...

    def plan(self, batch: RaggedBatch, page_size: int, device: torch.device) -> tuple[PlanOut, ...]:
        """Turns the step's lists into whatever tensors the backends want, for each group."""
        ...


@dataclass(frozen=True, slots=True)
class KVCacheInputs(Generic[Plan]):
    """One step's view of the KV cache; valid until the next `PagedKVCacheManager.step`.

    Attributes:
        positions: int64 [T], the position of each row in its request.
        context_lengths: int64 [T], see `RaggedBatch.context_lengths`.
        input_row_offsets: int64 [B + 1], where each request's rows begin.
        cache_lengths: int64 [B], tokens in the cache before this step.
        batch: what all this was made of; its lists of pages are the manager's own.
        key_pages: per layer, in the layout of the attention backend. Written during the step.
        value_pages: likewise.
        plans: what the attention made of the step, for each group of layers.
        states: per layer the tensors of its state, float32 [num_slots, …]; none where it has pages. Written likewise.
        state_step: which slots of them are whose; without such layers, of no requests.
    """

    positions: Tensor
    context_lengths: Tensor
    input_row_offsets: Tensor
    cache_lengths: Tensor
    batch: RaggedBatch
    key_pages: tuple[Tensor, ...]
    value_pages: tuple[Tensor, ...]
    plans: tuple[Plan, ...]
    states: tuple[tuple[Tensor, ...], ...] = ()
    state_step: StateStep = field(default_factory=StateStep.empty)


def build_kv_cache_inputs(
    batch: RaggedBatch,
    page_size: int,
    pages: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
    states: tuple[tuple[Tensor, ...], ...],
    planner: StepPlanner[Plan],
    device: torch.device,
) -> KVCacheInputs[Plan]:
    """Turns one step's lists into tensors; `pages` are all layers' keys and values, `states` what else they keep."""
    lists = (batch.positions, batch.context_lengths, batch.row_offsets, batch.cache_lengths)
    slots = (batch.read_slots, batch.write_slots)
    positions, context_lengths, input_row_offsets, cache_lengths, *slot_tensors = as_tensors((*lists, *slots), device)
    return KVCacheInputs(
        positions=positions,
        context_lengths=context_lengths,
        input_row_offsets=input_row_offsets,
        cache_lengths=cache_lengths,
        batch=batch,
        key_pages=pages[0],
        value_pages=pages[1],
        plans=planner.plan(batch, page_size, device),
        states=states,
        state_step=StateStep.of(input_row_offsets, *slot_tensors) if states else StateStep.empty(),
    )


def as_tensors(lists: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, ...]:
    """Returns a tensor of int64 for each list, all of them parts of one, which is one copy to the device.

    For a CPU they are made without any operation of torch: each hands over the interpreter's lock, and a busy thread of
    Python gives it back after 5 ms.
    """
    whole = np.array([*chain.from_iterable(lists)], dtype=np.int64)
    ends = [*accumulate(map(len, lists))]
    if device.type == "cpu":
        return tuple(map(torch.from_numpy, np.split(whole, ends[:-1])))
    return torch.from_numpy(whole).to(device).split([len(values) for values in lists])
