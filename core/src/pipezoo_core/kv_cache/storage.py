"""The K and V tensors. Knows neither requests nor what a page holds."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import torch
from torch import Tensor

from pipezoo_core.kv_cache.params import KVCacheParams

__all__ = ["KVCacheStorage", "PageShape"]

PageShape = Callable[[int, KVCacheParams], tuple[int, ...]]
"""The shape of one layer's pages, for a number of pages; stated by the attention backend."""


class KVCacheStorage:
    """Owns one tensor of key pages and one of value pages per layer, all in one piece of memory.

    They start as zeros, never as whatever was in memory: a masked-out position is multiplied by 0, and 0 · NaN is NaN.
    """

    def __init__(self, params: KVCacheParams, num_pages: int, page_shape: PageShape, device: torch.device) -> None:
        shape = (2, params.num_layers, *page_shape(num_pages, params))
        self.key_pages, self.value_pages = (tuple(pages) for pages in _zeros(shape, params.dtype, device))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns zeros; on a CPU in memory that the system hands out when it is first written.

    torch writes the zeros itself, so that a cache of gigabytes would take seconds and all of its memory before the
    first request. numpy asks for pages of 2 MiB: each layer's first token would take one, and the time to find it.
    """
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    if device.type != "cpu" or not num_bytes:
        return torch.zeros(shape, dtype=dtype, device=device)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return torch.frombuffer(mmap.mmap(-1, num_bytes, **private), dtype=torch.uint8).view(dtype).view(shape)
