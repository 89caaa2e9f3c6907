"""The K and V tensors. Knows neither requests nor what a page holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipezoo_core.kv_cache.params import KVCacheParams

__all__ = ["KVCacheStorage", "PageShape"]

PageShape = Callable[[int, KVCacheParams], tuple[int, ...]]
"""The shape of one layer's pages, for a number of pages; stated by the attention backend."""


class KVCacheStorage:
    """Owns one tensor of key pages and one of value pages per layer.

    They start as zeros, never as whatever was in memory: a masked-out position is multiplied by 0, and 0 · NaN is NaN.
    The operating system gives zeroed memory lazily, so pages that are never written cost nothing.
    """

    def __init__(self, params: KVCacheParams, num_pages: int, page_shape: PageShape, device: torch.device) -> None:
        shape = page_shape(num_pages, params)
        self.key_pages = tuple(self._allocate(shape, params, device) for _ in range(params.num_layers))
        self.value_pages = tuple(self._allocate(shape, params, device) for _ in range(params.num_layers))

    @staticmethod
    def _allocate(shape: tuple[int, ...], params: KVCacheParams, device: torch.device) -> Tensor:
        return torch.zeros(shape, dtype=params.dtype, device=device)
