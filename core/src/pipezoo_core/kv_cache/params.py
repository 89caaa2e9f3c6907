"""The shape of a model's KV cache. Knows sizes, not contents."""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
    """

    dtype: torch.dtype
    num_layers: int
    num_kv_heads: int
    head_dim: int
    page_size: int = 64
    enable_prefix_caching: bool = True
    model_id: str = ""
    max_shareable_prompt: int | None = None

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
