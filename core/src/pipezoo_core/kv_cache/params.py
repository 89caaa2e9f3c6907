"""The shape of a model's KV cache. Knows sizes, not contents."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from pipezoo_core.paging import first_visible

__all__ = ["KVCacheParams"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCacheParams:
    """What decides how much memory one page takes and what may be shared.

    Attributes:
        dtype: of keys and values.
        num_layers: decoder layers, each with its own K and V.
        num_kv_heads: key/value heads per layer.
        head_dim: numbers per head.
        page_size: tokens per page.
        enable_prefix_caching: share full pages between requests that begin alike.
        model_id: goes into the hash of every shared page.
        max_shareable_prompt: requests with longer prompts share nothing, because their keys depend on the length of
            the prompt (dynamic NTK RoPE beyond the trained length); None shares always.
        sliding_window: how many tokens a token sees in every layer, itself included; pages behind it are given back.
            None where a layer sees all.
    """

    dtype: torch.dtype
    num_layers: int
    num_kv_heads: int
    head_dim: int
    page_size: int = 64
    enable_prefix_caching: bool = True
    model_id: str = ""
    max_shareable_prompt: int | None = None
    sliding_window: int | None = None

    @property
    def bytes_per_token(self) -> int:
        """K and V of one token over all layers, in bytes."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def bytes_per_page(self) -> int:
        """K and V of one page over all layers, in bytes."""
        return self.bytes_per_token * self.page_size

    def num_pages_for(self, num_tokens: int) -> int:
        """How many pages hold so many tokens."""
        return -(-num_tokens // self.page_size)

    def first_visible_page(self, position: int) -> int:
        """Which of a request's pages is the first that its token at this position sees, and no later token before it.

        With a window of 6 and pages of 4, the token at position 9 sees positions 4 to 9: pages 1 and 2.
        """
        return first_visible(position, self.sliding_window) // self.page_size

    def num_tokens_held(self, num_tokens: int, max_chunk: int) -> int:
        """For how many tokens at most a request has pages at the same time.

        Args:
            num_tokens: of the request.
            max_chunk: how many of them it is fed at once, at most.
        """
        if self.sliding_window is None:
            return num_tokens
        visible = self.sliding_window - 1 + max_chunk  # they may begin with the last token of a page
        return min(num_tokens, (1 + self.num_pages_for(visible - 1)) * self.page_size)

    def max_tokens_in(self, num_pages: int) -> int:
        """How many tokens one request may have in so many pages; `sys.maxsize` where the window fits them."""
        num_tokens = num_pages * self.page_size
        is_bounded = self.num_tokens_held(num_tokens + 1, max_chunk=1) > num_tokens
        return num_tokens if is_bounded else sys.maxsize
