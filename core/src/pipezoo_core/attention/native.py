"""Attention by the optional kernels of `pipezoo-kernels`: one pass over the pages for decode and prefill alike.

A step is cut into *items*: some queries of one request against a range of its keys, which the kernel works through on
all cores. A decode over many keys is cut along them, so that one long request keeps many cores busy, and its partial
results are joined. Decodes that share the pages of a cut go through it together, so that a common prefix is read once
for all of them. The cuts lie at the same positions in all requests: those of any length share a prefix, and a request's
result is the same, bit for bit, whatever else is in the batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate, chain, compress, pairwise

import numpy as np
import torch
from torch import Tensor

from pipezoo_core.attention.base import AttentionBackend, AttentionSpec, Rotation
from pipezoo_core.errors import TensorMismatchError, UnsupportedAttentionError
from pipezoo_core.kv_cache import RaggedBatch
from pipezoo_core.native import PANEL, AttentionSizes, NativeKernels, bits
from pipezoo_core.paging import first_visible

__all__ = ["NativeAttention"]

_QUERIES = 48  # queries of one key/value head that an item has at most: four tiles of the kernel
_KEYS = 256  # a decode is cut after so many keys at first, whatever the size of pages is
_ALIKE = 32  # so many pieces are equally long, and the next ones twice as long: each has a result that takes memory
_PAGE_MULTIPLE = 32
_FLOAT_BYTES = 4
_MAX_HEAD_DIM = 576  # of the kernels


@dataclass(frozen=True, slots=True)
class NativePlan:
    """One step's work, the same for all layers of a group.

    Attributes:
        arrays: what the description points into, and itself. Of numpy, as in `kv_cache.as_tensors`.
        address: where the description lies.
        num_rows: of the step.
    """

    arrays: tuple[np.ndarray, ...]
    address: int
    num_rows: int


class NativeAttention(AttentionBackend):
    """In one kernel. Pages are `[num_pages, num_kv_heads, page_size · head_dim]`, ordered within as the kernel reads.

    Values are `value_size` numbers instead of `head_dim`; those that lie in the keys have no pages.

    Args:
        spec: what the model's layers need.
        kernels: compute it.
        page_size: tokens per page.

    Raises:
        UnsupportedAttentionError: the kernels cannot be used here, or not for these sizes.
    """

    name = "native"
    checks_tensors = True

    def __init__(self, spec: AttentionSpec, kernels: NativeKernels, page_size: int) -> None:
        super().__init__(spec)
        if reason := self.why_not(spec, kernels, page_size):
            raise UnsupportedAttentionError(f"attention 'native' cannot be used: {reason}", cure="Leave it at auto.")
        self._kernels = kernels
        self._sizes = AttentionSizes(spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.value_size, page_size)
        self._given = (spec.kv_layer is None, spec.kv_layer is None and not spec.values_in_keys, spec.has_sinks)
        self._sees_all = spec.sliding_window is None and spec.chunk is None
        self._max_queries = max(1, _QUERIES // spec.num_groups)
        self._partial_shape = (spec.num_heads, 2 + spec.value_size)  # in float32
        self._slopes = np.array(spec.alibi_slopes or (), dtype=np.float32)
        slopes = self._slopes.ctypes.data if spec.alibi_slopes else 0
        self._layer = np.array([bits(spec.scale), bits(spec.softcap or 0.0), slopes], dtype=np.int64)
        self._layer_address = self._layer.ctypes.data

    @staticmethod
    def why_not(spec: AttentionSpec, kernels: NativeKernels, page_size: int) -> str | None:
        """Returns what stands in the way of this backend; None if it can be used."""
        for name, size in (("head_dim", spec.head_dim), ("value_dim", spec.value_size)):
            if size % PANEL or size > _MAX_HEAD_DIM:
                return f"{name} is {size}, not a multiple of {PANEL} up to {_MAX_HEAD_DIM}"
        if page_size % _PAGE_MULTIPLE:
            return f"page_size is {page_size}, not a multiple of {_PAGE_MULTIPLE}"
        return kernels.obstacle

    def page_shapes(self, num_pages: int, page_size: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Returns the shapes of a layer's key and value pages; None for values that lie in the keys.

        Raises:
            UnsupportedAttentionError: the pages are not those that it was made for.
        """
        self._check_page_size(page_size)
        cells = (num_pages, self.spec.num_kv_heads)
        values = None if self.spec.values_in_keys else (*cells, page_size * self.spec.value_size)
        return (*cells, page_size * self.spec.head_dim), values

    def _check_page_size(self, page_size: int) -> None:
        if page_size != self._sizes.page_size:
            raise UnsupportedAttentionError(
                "attention 'native' was made for pages of another size",
                found=page_size,
                allowed=str(self._sizes.page_size),
                cure="Make the backends and the KV cache with the same page_size.",
            )

    def plan(self, batch: RaggedBatch, page_size: int, device: torch.device, group: int) -> NativePlan:
        """Cuts the step into items.

        With 3 query heads per key/value head, pages of 64 and a request of 300 tokens that feeds one more: items
        (keys 0 to 255) and (keys 256 to 300), joined. One that begins with 20 tokens: items of 16 and 4 queries. Two
        of 300 tokens that share their first 256: an item (keys 0 to 255) of 2 queries, and one each (keys 256 to 300).

        Raises:
            UnsupportedAttentionError: the pages are not those that it was made for.
        """
        del device
        self._check_page_size(page_size)
        items: list[tuple[int, ...]] = []
        alike: dict[tuple[int, ...], list[tuple[int, int, int]]] = defaultdict(list)
        page_table: list[int] = []
        spans = zip(batch.row_offsets, batch.active_lengths, batch.cache_lengths, batch.pages[group], strict=False)
        for row, active, cached, pages in spans:
            for first, end in self._query_ranges(active):
                keys = self._key_ranges(cached + first, cached + end, is_decode=active == 1)
                start = (row + first, cached + first, len(page_table))
                if len(keys) == 1:
                    items.append((start[0], end - first, start[1], *keys[0], start[2], -1))
                    continue
                for key, end_key in keys:
                    alike[self._seen(key, end_key, pages, page_size, start[0])].append(start)
            page_table += pages
        partials_of: dict[int, list[int]] = defaultdict(list)
        num_partials = 0
        for (key, end_key, *_), starts in alike.items():
            for run in self._runs(starts):
                row, position, at = run[0]
                items.append((row, len(run), position, key, end_key, at, num_partials))
                for i in range(len(run)):
                    partials_of[row + i].append(num_partials + i)
                num_partials += len(run)
        items.sort(key=lambda item: item[1] * (item[4] - item[3]), reverse=True)  # the largest first: all end together
        counts = [len(numbers) for numbers in partials_of.values()]
        splits = list(zip(partials_of, [0, *accumulate(counts)], counts, strict=False))
        row_pages, row_places = batch.cells(page_size, group)
        lists = (
            row_pages,
            row_places,
            [*chain.from_iterable(items)],
            page_table,
            [*chain.from_iterable(splits)],
            [number for numbers in partials_of.values() for number in numbers],
        )
        tables = np.array([*chain.from_iterable(lists)], dtype=np.int32)
        addresses = accumulate((len(values) * tables.itemsize for values in lists), initial=tables.ctypes.data)
        row_table, place_table, item_table, page_addresses, split_table, numbers, _ = addresses
        spec = self.spec
        partials = np.empty((num_partials, *self._partial_shape), dtype=np.float32)
        description = np.array(
            [
                *(len(row_pages), row_table, place_table, len(items), item_table, page_addresses),
                *(len(splits), split_table, numbers, partials.ctypes.data),
                *self._sizes,
                *(spec.sliding_window or 0, spec.chunk or 0),
            ],
            dtype=np.int64,
        )
        arrays = (tables, partials, description)
        return NativePlan(arrays=arrays, address=description.ctypes.data, num_rows=len(row_pages))

    def _seen(self, key: int, end_key: int, pages: list[int], page_size: int, row: int) -> tuple[int, ...]:
        """Returns what a decode sees in a range of keys; the same for two that share the pages.

        With ALiBi, a window or chunks it matters where the query is, too.
        """
        spec = self.spec
        if spec.alibi_slopes is not None or spec.sliding_window is not None or spec.chunk is not None:
            return (key, end_key, row)
        return (key, end_key, *pages[key // page_size : -(-end_key // page_size)])

    def _runs(self, starts: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
        """Divides rows into those that follow each other, no more than an item can have."""
        runs: list[list[tuple[int, int, int]]] = []
        for start in starts:
            if runs and start[0] == runs[-1][-1][0] + 1 and len(runs[-1]) < self._max_queries:
                runs[-1].append(start)
            else:
                runs.append([start])
        return runs

    def _query_ranges(self, active: int) -> list[tuple[int, int]]:
        size = self._max_queries
        return [(first, min(first + size, active)) for first in range(0, active, size)]

    def _key_ranges(self, position: int, end: int, *, is_decode: bool) -> list[tuple[int, int]]:
        """Returns the keys that the queries at positions `position` to `end` see, from where the kernel can begin.

        Only those of a decode are cut: a prompt has queries enough to divide, and each piece takes memory.
        """
        spec = self.spec
        first = first_visible(position, spec.sliding_window, spec.chunk) // _PAGE_MULTIPLE * _PAGE_MULTIPLE
        return list(pairwise([first, *(self._cuts(first, end) if is_decode else ()), end]))

    def _cuts(self, first: int, end: int) -> list[int]:
        """Returns the positions between these two at which every decode is cut.

        Without a window or chunks there are 32 pieces of 256 keys, which end at 8,192, then 32 of 512, which end at
        24,576, and so on.
        """
        cuts: list[int] = []
        size = _KEYS
        at = first // size * size
        while (at := at + size) < end:
            cuts.append(at)
            if self._sees_all and len(cuts) % _ALIKE == 0:
                size *= 2
        return cuts

    def working_memory(self, num_rows: int, max_length: int, itemsize: int) -> int:
        """Returns 0: what the kernels take is a few buffers of each thread."""
        del num_rows, max_length, itemsize
        return 0

    def planned_memory(self, num_requests: int, max_length: int) -> int:
        """Returns the bytes of the pieces' results, where all requests decode and are of the length that has most."""
        lasts = [max_length - 1] if self._sees_all else range(0, max_length, _KEYS)
        num_pieces = max(len(self._key_ranges(last, last + 1, is_decode=True)) for last in lasts)
        return num_requests * num_pieces * math.prod(self._partial_shape) * _FLOAT_BYTES if num_pieces > 1 else 0

    def attend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        key_pages: Tensor,
        value_pages: Tensor,
        plan: NativePlan,
        rotation: Rotation | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Does all of it in one call.

        Raises:
            TensorMismatchError: a tensor has not the plan's rows or the spec's heads, or not the kernels' dtype, or one
                is missing or too many.
        """
        given = (k is not None, v is not None, sinks is not None)
        if given != self._given:
            raise TensorMismatchError(
                "attention 'native' was given other tensors than its layer has",
                found=_names(given),
                allowed=_names(self._given),
                cure="Check the calls in the model's module.",
            )
        descriptions = (plan.address, self._layer_address)
        pages = (key_pages, None if self.spec.values_in_keys else value_pages)
        return self._kernels.attend((q, k, v), rotation, pages, descriptions, sinks, self._sizes, plan.num_rows)


def _names(given: tuple[bool, bool, bool]) -> str:
    return ", ".join(["q", *compress(("k", "v", "sinks"), given)])
