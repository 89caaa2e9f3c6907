"""The tensors of keys, values and states. Knows neither requests nor what a page or slot holds."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from pipezoo_core.kv_cache.inputs import StepPlanner
from pipezoo_core.recurrence import StateSpec

__all__ = ["KVCacheStorage"]


class KVCacheStorage:
    """Owns one tensor of key pages and one of value pages per layer, those of a group in one piece of memory.

    Layers that keep a state have its tensors instead, of as many slots as there are.

    They start as zeros, never as whatever was in memory: a masked-out position is multiplied by 0, and 0 · NaN is NaN.

    Args:
        planner: states the layout of the pages.
        num_pages: of each group.
        page_size: tokens per page.
        dtype: of keys and values.
        device: where the pages are.
        states: of each layer what it keeps instead of pages, None where it has pages.
        num_slots: for states.

    Attributes:
        key_pages: of each layer; layers that read another one's have the same, those with a state an empty tensor.
        value_pages: likewise; where the values lie in the keys, these.
        states: of each layer the tensors of its state, float32 [num_slots, …]; none where it has pages.
    """

    def __init__(
        self,
        planner: StepPlanner[object],
        num_pages: Sequence[int],
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        states: Sequence[StateSpec | None] = (),
        num_slots: int = 0,
    ) -> None:
        keys: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        for number, (group, count) in enumerate(zip(planner.groups, num_pages, strict=True)):
            key_shape, value_shape = planner.page_shapes(number, count, page_size)
            keys |= zip(group.layers, _zeros((len(group.layers), *key_shape), dtype, device), strict=True)
            parts = () if value_shape is None else _zeros((len(group.layers), *value_shape), dtype, device)
            values |= zip(group.layers, parts, strict=False)
        none = torch.empty(0, dtype=dtype, device=device)
        layers = planner.page_layers
        self.key_pages = tuple(none if layer is None else keys[layer] for layer in layers)
        self.value_pages = tuple(none if layer is None else values.get(layer, keys[layer]) for layer in layers)
        self.states = tuple(
            tuple(_zeros((num_slots, *shape), torch.float32, device) for shape in (spec.shapes if spec else ()))
            for spec in states
        )


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
