"""Attention by the optional kernels of `pipezoo-kernels`: one pass over the pages for decode and prefill alike.

A step is cut into *items*: some queries of one request against a range of its keys, which the kernel works through on
all cores. A decode over many keys is cut along them, so that one long request keeps all cores busy, and its partial
results are joined. Where the cuts lie depends on the request alone: its result is the same, bit for bit, whatever else
is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pipezoo_core.attention.base import AttentionBackend, AttentionSpec, Rotation
from pipezoo_core.errors import UnsupportedAttentionError
from pipezoo_core.kv_cache import KVCacheParams, RaggedBatch
from pipezoo_core.native import NativeKernels, bits

__all__ = ["NativeAttention"]

_QUERIES = 48  # queries of one key/value head that an item has at most: four tiles of the kernel
_KEYS = 256  # a decode is cut after so many keys
_MULTIPLE = 32  # of head_dim and page_size: what the kernel's tiles are wide


@dataclass(frozen=True, slots=True)
class NativePlan:
    """One step's work, the same for all layers.

    Attributes:
        tensors: what the description points into, and itself.
        address: where the description lies.
    """

    tensors: tuple[Tensor, ...]
    address: int


class NativeAttention(AttentionBackend):
    """In one kernel. Pages are `[num_pages, num_kv_heads, page_size · head_dim]`, ordered within as the kernel reads.

    Args:
        spec: what the model's layers need.
        kernels: compute it.
        page_size: tokens per page.

    Raises:
        UnsupportedAttentionError: the kernels cannot be used here, or not for these sizes.
    """

    name = "native"

    def __init__(self, spec: AttentionSpec, kernels: NativeKernels, page_size: int) -> None:
        super().__init__(spec)
        if reason := self.why_not(spec, kernels, page_size):
            raise UnsupportedAttentionError(f"attention 'native' cannot be used: {reason}", cure="Leave it at auto.")
        self._kernels = kernels
        self._slopes = torch.tensor(spec.alibi_slopes or (), dtype=torch.float32)

    @staticmethod
    def why_not(spec: AttentionSpec, kernels: NativeKernels, page_size: int) -> str | None:
        """Returns what stands in the way of this backend; None if it can be used."""
        if spec.head_dim % _MULTIPLE or spec.head_dim > 256:
            return f"head_dim is {spec.head_dim}, not a multiple of {_MULTIPLE} up to 256"
        if page_size % _MULTIPLE:
            return f"page_size is {page_size}, not a multiple of {_MULTIPLE}"
        return kernels.obstacle

    def page_shape(self, num_pages: int, params: KVCacheParams) -> tuple[int, ...]:
        """Returns the shape of one layer's key (and value) pages."""
        return (num_pages, params.num_kv_heads, params.page_size * params.head_dim)

    def plan(self, batch: RaggedBatch, page_size: int, device: torch.device) -> NativePlan:
        """Cuts the step into items.

        With 3 query heads per key/value head, pages of 64 and a request of 300 tokens that feeds one more: items
        (keys 0 to 255) and (keys 256 to 300), joined. One that begins with 20 tokens: items of 16 and 4 queries.
        """
        del device
        items: list[tuple[int, ...]] = []
        splits: list[tuple[int, ...]] = []
        page_table: list[int] = []
        num_partials = 0
        spans = zip(batch.row_offsets, batch.active_lengths, batch.cache_lengths, batch.pages, strict=False)
        for row, active, cached, pages in spans:
            for first, end in self._query_ranges(active):
                keys = self._key_ranges(cached + first, cached + end, page_size)
                if len(keys) > 1:
                    splits.append((row + first, num_partials, len(keys)))
                for key, end_key in keys:
                    partial = -1 if len(keys) == 1 else num_partials
                    items.append((row + first, end - first, cached + first, key, end_key, len(page_table), partial))
                    num_partials += len(keys) > 1
            page_table += pages
        items.sort(key=lambda item: item[1] * (item[4] - item[3]), reverse=True)  # the largest first: all end together
        row_pages = [
            pages[position // page_size]
            for active, cached, pages in zip(batch.active_lengths, batch.cache_lengths, batch.pages, strict=True)
            for position in range(cached, cached + active)
        ]
        partials = torch.empty(num_partials, self.spec.num_heads, 2 + self.spec.head_dim)
        tensors = (
            torch.tensor(row_pages, dtype=torch.int32),
            torch.tensor([position % page_size for position in batch.positions], dtype=torch.int32),
            torch.tensor(items, dtype=torch.int32),
            torch.tensor(page_table, dtype=torch.int32),
            torch.tensor(splits, dtype=torch.int32),
        )
        row_table, slot_table, item_table, page_addresses, split_table = (tensor.data_ptr() for tensor in tensors)
        description = torch.tensor(
            [
                *(len(row_pages), row_table, slot_table, len(items), item_table, page_addresses),
                *(len(splits), split_table, partials.data_ptr()),
                *(self.spec.num_heads, self.spec.num_kv_heads, self.spec.head_dim, page_size),
                *(
                    self.spec.sliding_window or 0,
                    self._slopes.data_ptr(),
                    bits(self.spec.scale),
                ),
            ]
        )
        return NativePlan(tensors=(*tensors, partials, description), address=description.data_ptr())

    def _query_ranges(self, active: int) -> list[tuple[int, int]]:
        size = max(1, _QUERIES // self.spec.num_groups)
        return [(first, min(first + size, active)) for first in range(0, active, size)]

    def _key_ranges(self, position: int, end: int, page_size: int) -> list[tuple[int, int]]:
        """Returns the keys that the queries at positions `position` to `end` see, from a page's first one on."""
        window = self.spec.sliding_window
        first = 0 if window is None else max(0, position - window + 1) // page_size * page_size
        if end - position > 1:
            return [(first, end)]
        size = max(_KEYS, page_size) // page_size * page_size
        cuts = [first, *range((first // size + 1) * size, end, size), end]
        return list(pairwise(cuts))

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_pages: Tensor,
        value_pages: Tensor,
        plan: NativePlan,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """Does all of it in one call."""
        return self._kernels.attend((q, k, v), rotation, (key_pages, value_pages), plan.address)
