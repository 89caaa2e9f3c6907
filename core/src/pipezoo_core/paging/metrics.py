"""What a KV cache counts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KVCacheMetrics"]


@dataclass(frozen=True, slots=True)
class KVCacheMetrics:
    """Counters since the manager was made.

    Attributes:
        prompt_tokens: tokens of all requests when they got their first pages.
        prefix_hit_tokens: how many of them were found in the prefix cache.
        evicted_pages: idle pages whose contents were given up for others.
    """

    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    evicted_pages: int = 0
