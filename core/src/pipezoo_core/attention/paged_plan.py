"""What `PagedAttention` makes of a step once for all layers: pages in groups, prefills, indices and biases."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from pipezoo_core.attention.base import AttentionSpec
from pipezoo_core.kv_cache import RaggedBatch
from pipezoo_core.paging import first_visible

__all__ = ["UNSEEN", "PageGroup", "PagedPlan", "Prefill", "plan_pages"]

UNSEEN = -1e30
"""The score of a key that is not seen: finite, so that a page nobody sees gives a weight of 0 and not NaN."""

_MAX_GAPS = 1.5  # read a range of pages in place while at most so many times the wanted ones lie in it


@dataclass(frozen=True, slots=True)
class PageGroup:
    """Pages that go through one batched product, each with up to S decoding requests that see it.

    Attributes:
        pages: the range of pages, or their numbers [P].
        owners: int64 [P · S], which decoding request; 0 with the bias of an unseen key where a page has fewer.
        bias: [P, 1 or K, S, 1 or G, page_size], added to the scores.
    """

    pages: slice | Tensor
    owners: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Prefill:
    """One request that feeds more than one token: its rows, and what it needs to see earlier ones.

    Attributes:
        rows: its rows of the step.
        pages: int64, those that it sees.
        has_past: whether it sees more than the chunk's own keys.
        num_keys: tokens of the request in these pages after this step.
        bias: added to the scores; None for plain causal attention.
    """

    rows: slice
    pages: Tensor
    has_past: bool
    num_keys: int
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """One step's work, the same for all layers."""

    write_pages: Tensor
    write_places: Tensor
    decode_rows: Tensor
    groups: list[PageGroup]
    prefills: list[Prefill]


def plan_pages(spec: AttentionSpec, batch: RaggedBatch, page_size: int, device: torch.device, group: int) -> PagedPlan:
    """Sorts a step's requests into decodes and prefills.

    Args:
        spec: of the layers.
        batch: the step.
        page_size: tokens per page.
        device: of the indices.
        group: of layers, whose pages they are.
    """
    offsets = batch.row_offsets
    spans = list(zip(batch.active_lengths, batch.cache_lengths, batch.pages[group], strict=True))
    write_pages, write_places = batch.cells(page_size, group)
    decodes = [i for i, (active, _, _) in enumerate(spans) if active == 1]
    return PagedPlan(
        write_pages=_integers(write_pages, device),
        write_places=_integers(write_places, device),
        decode_rows=_integers([offsets[i] for i in decodes], device),
        groups=_page_groups(
            spec,
            [batch.cache_lengths[i] for i in decodes],
            [batch.pages[group][i] for i in decodes],
            page_size,
            device,
        ),
        prefills=[
            _prefill(spec, slice(offsets[i], offsets[i + 1]), start, pages, page_size, device)
            for i, (active, start, pages) in enumerate(spans)
            if active > 1
        ],
    )


def _integers(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def _prefill(
    spec: AttentionSpec, rows: slice, cached: int, pages: list[int], page_size: int, device: torch.device
) -> Prefill:
    end = cached + rows.stop - rows.start
    first = first_visible(cached, spec.sliding_window, spec.chunk) // page_size
    plain = spec.alibi_slopes is None and first_visible(end - 1, spec.sliding_window, spec.chunk) == 0
    keys = torch.arange(first * page_size, end, dtype=torch.int64, device=device)
    return Prefill(
        rows=rows,
        pages=_integers(pages[first : -(-end // page_size)], device),
        has_past=cached > 0,
        num_keys=len(keys),
        bias=None if plain and not cached else spec.bias(keys[cached - first * page_size :], keys),
    )


def _page_groups(
    spec: AttentionSpec, cache_lengths: list[int], pages: list[list[int]], page_size: int, device: torch.device
) -> list[PageGroup]:
    """Groups the pages of decoding requests by how many share them: one, two, up to four, up to eight, ….

    Each group is padded to the most that share one of its pages, so no page to more than twice its number.

    Requests 0 and 1, both of 9 tokens in pages of 4, share page 3; request 0 goes on in pages 0 and 1, request 1 in
    pages 4 and 5. Of one: the range 0 to 6 with owners [0, 0, -, -, 1, 1], in which pages 2 and 3 are unseen. Of two:
    page 3 with owners [0, 1].
    """
    seen: dict[int, list[tuple[int, int]]] = defaultdict(list)  # page -> (request, position of its first token)
    for request, (position, own) in enumerate(zip(cache_lengths, pages, strict=True)):
        first = first_visible(position, spec.sliding_window, spec.chunk) // page_size
        for index in range(first, position // page_size + 1):
            seen[own[index]].append((request, index * page_size))
    groups: dict[int, list[int]] = defaultdict(list)
    for page in sorted(seen):
        groups[(len(seen[page]) - 1).bit_length()].append(page)
    return [_page_group(spec, numbers, seen, cache_lengths, page_size, device) for numbers in groups.values()]


def _page_group(
    spec: AttentionSpec,
    numbers: list[int],
    seen: dict[int, list[tuple[int, int]]],
    cache_lengths: list[int],
    page_size: int,
    device: torch.device,
) -> PageGroup:
    wanted = set(numbers)
    span = range(numbers[0], numbers[-1] + 1)
    in_place = len(span) <= _MAX_GAPS * len(numbers)
    listed = list(span) if in_place else numbers
    num_sharers = max(len(seen[page]) for page in numbers)
    owners, queries, starts = [], [], []
    for page in listed:
        sharers = seen[page] if page in wanted else []
        for request, start in sharers:
            owners.append(request)
            queries.append(cache_lengths[request])
            starts.append(start)
        for _ in range(num_sharers - len(sharers)):
            owners.append(0)
            queries.append(-1)  # before every key: sees nothing
            starts.append(0)
    places = torch.arange(page_size, dtype=torch.int64, device=device)
    keys = _integers(starts, device).unsqueeze(-1) + places  # [I, page_size]
    bias = spec.bias(_integers(queries, device).unsqueeze(-1), keys).clamp_(min=UNSEEN)
    bias = bias.view(len(listed), num_sharers, -1, page_size)  # [P, S, 1 or N, page_size]
    if spec.alibi_slopes is not None:
        bias = bias.unflatten(2, (spec.num_kv_heads, spec.num_groups)).transpose(1, 2)  # [P, K, S, G, page_size]
    else:
        bias = bias.unsqueeze(1)  # [P, 1, S, 1, page_size]
    return PageGroup(
        pages=slice(span.start, span.stop) if in_place else _integers(numbers, device),
        owners=_integers(owners, device),
        bias=bias,
    )
