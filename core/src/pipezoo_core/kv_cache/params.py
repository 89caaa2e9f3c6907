"""The shape of a model's KV cache. Knows sizes, not contents."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipezoo_core.recurrence import StateSpec

__all__ = ["KVCacheParams", "KVGroup"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KVGroup:
    """Layers whose pages are alike: of one size, and of use for as long.

    Attributes:
        layers: which layers of the model write these pages.
        num_kv_heads: key/value heads.
        head_dim: numbers per head of a key.
        value_dim: numbers per head of a value; 0 where the values are a part of the keys.
        sliding_window: how many tokens a token sees, itself included; pages behind it are given back. None for all.
        chunk: how many tokens make a chunk, of which a token sees its own; None for no chunks.
    """

    layers: tuple[int, ...]
    num_kv_heads: int
    head_dim: int
    value_dim: int
    sliding_window: int | None = None
    chunk: int | None = None

    @property
    def reach(self) -> int | None:
        """How many tokens a token sees at most, itself included; None for all."""
        return min((x for x in (self.sliding_window, self.chunk) if x is not None), default=None)

    @property
    def numbers_per_token(self) -> int:
        """Numbers of keys and values of a token, in all layers of the group."""
        return len(self.layers) * self.num_kv_heads * (self.head_dim + self.value_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCacheParams:
    """What decides how much memory pages take and what may be shared.

    Attributes:
        dtype: of keys and values.
        groups: of layers; each has pages of its own. A model whose layers are alike has one.
        page_size: tokens per page.
        enable_prefix_caching: share full pages between requests that begin alike.
        model_id: goes into the hash of every shared page.
        max_shareable_prompt: requests with longer prompts share nothing, because their keys depend on the length of
            the prompt (dynamic NTK RoPE beyond the trained length); None shares always.
        states: of each layer of the model what it keeps instead of pages, None where it has pages; empty where all do.
    """

    dtype: torch.dtype
    groups: tuple[KVGroup, ...]
    page_size: int = 64
    enable_prefix_caching: bool = True
    model_id: str = ""
    max_shareable_prompt: int | None = None
    states: tuple[StateSpec | None, ...] = ()

    @property
    def slot_bytes(self) -> int:
        """A request's states, over all layers that keep one, in bytes; 0 where none does."""
        return torch.float32.itemsize * sum(spec.num_numbers for spec in self.states if spec is not None)

    def num_slots_for(self, max_batch_size: int) -> int:
        """How many slots for states there are: two of each running request, which reads one and writes another at most.

        Most of the time it needs one, and the others are snapshots. Where nothing is shared, it always needs one.
        """
        if not self.slot_bytes:
            return 0
        return 2 * max_batch_size if self.enable_prefix_caching else max_batch_size

    def state_bytes(self, max_batch_size: int) -> int:
        """Returns the bytes of all slots."""
        return self.num_slots_for(max_batch_size) * self.slot_bytes

    @property
    def page_bytes(self) -> tuple[int, ...]:
        """K and V of one page of each group, over the group's layers, in bytes."""
        return tuple(group.numbers_per_token * self.page_size * self.dtype.itemsize for group in self.groups)

    def size_of(self, num_pages: Sequence[int]) -> int:
        """Returns the bytes of so many pages of each group."""
        return sum(count * size for count, size in zip(num_pages, self.page_bytes, strict=True))

    def num_pages_for(self, num_tokens: int) -> int:
        """How many pages hold so many tokens."""
        return -(-num_tokens // self.page_size)

    def num_pages_held(self, num_tokens: int, max_chunk: int) -> tuple[int, ...]:
        """How many pages of each group a request has at the same time, at most.

        Args:
            num_tokens: of the request.
            max_chunk: how many of them it is fed at once, at most.
        """
        needed = self.num_pages_for(num_tokens)
        return tuple(needed if most is None else min(needed, most) for most in self._most_pages_held(max_chunk))

    def bytes_held(self, num_tokens: int, max_chunk: int) -> int:
        """Returns the bytes of the pages that a request has at the same time, at most; see `num_pages_held`."""
        return self.size_of(self.num_pages_held(num_tokens, max_chunk))

    def max_tokens_in(self, num_pages: Sequence[int]) -> int:
        """How many tokens one request may have in so many pages of each group; `sys.maxsize` for any number."""
        return min(
            sys.maxsize if most is not None and most <= count else count * self.page_size
            for count, most in zip(num_pages, self._most_pages_held(1), strict=True)
        )

    def longest_in(self, num_bytes: int) -> int:
        """How many tokens one request may have that takes all of so many bytes; `sys.maxsize` for any number."""
        return self.max_tokens_in(self._largest_held(num_bytes))

    def divide(self, num_bytes: int, num_requests: int, num_tokens: int, max_chunk: int) -> tuple[int, ...]:
        """Divides memory among the groups: how many pages each gets.

        Groups whose pages expire get what a full batch needs, of at most half of the memory, and the others all else:
        how long requests are is not known, and short ones need as many pages of the one as of the other. One request of
        the greatest length has room, if it has in so many bytes at all.

        Args:
            num_bytes: to divide.
            num_requests: of a full batch.
            num_tokens: of the longest request.
            max_chunk: how many tokens a request is fed at once, at most.
        """
        sizes = self.page_bytes
        if len(sizes) == 1:
            return (max(0, num_bytes) // sizes[0],)
        longest = self.longest_in(num_bytes)
        least = self.num_pages_held(min(num_tokens, longest), 1)
        wanted = self.num_pages_held(num_tokens, max_chunk)
        bounded = [i for i, group in enumerate(self.groups) if group.reach is not None]
        others = [i for i in range(len(sizes)) if i not in bounded]
        pages = [0] * len(sizes)
        budget = num_bytes // 2 if others else num_bytes
        if num_tokens <= longest:
            budget = min(budget, num_bytes - sum(least[i] * sizes[i] for i in others))
        spare = max(0, budget - sum(least[i] * sizes[i] for i in bounded))
        for i in bounded:
            share = least[i] + spare * wanted[i] // sum(wanted[j] * sizes[j] for j in bounded)
            pages[i] = min(max(least[i], num_requests * wanted[i]), share)
        left = max(0, num_bytes - self.size_of(pages))
        for i in others:
            pages[i] = left // sum(sizes[j] for j in others)
        return tuple(pages)

    def _largest_held(self, num_bytes: int) -> tuple[int, ...]:
        """The pages of the longest request that fits so many bytes."""
        most = self._most_pages_held(1)
        low, high = 0, max(num_bytes // min(self.page_bytes), *(count or 0 for count in most)) + 1
        while high - low > 1:  # pages that fit, and pages that do not
            middle = (low + high) // 2
            if self.bytes_held(middle * self.page_size, 1) <= num_bytes:
                low = middle
            else:
                high = middle
        return self.num_pages_held(low * self.page_size, 1)

    def _most_pages_held(self, max_chunk: int) -> list[int | None]:
        """For each group the pages that a request of any length has at the same time; None where there is no bound."""
        reaches = [group.reach for group in self.groups]
        # what is visible may begin with the last token of a page
        return [None if reach is None else 1 + self.num_pages_for(reach - 2 + max_chunk) for reach in reaches]
