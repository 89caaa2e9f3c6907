"""Which backend computes the attention of which layer, and which layers share what a step needs. Chosen at load."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pipezoo_core.attention.base import AttentionBackend, AttentionSpec
from pipezoo_core.attention.native import NativeAttention
from pipezoo_core.attention.paged import PagedAttention
from pipezoo_core.attention.reference import ReferenceAttention
from pipezoo_core.config import AttentionName
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.kv_cache import KVGroup, RaggedBatch
from pipezoo_core.native import NativeKernels
from pipezoo_core.recurrence import StateSpec

__all__ = ["AttentionBackends", "kv_groups"]


class AttentionBackends:
    """The attention of all layers: a backend for each distinct spec, a plan and pages for each group.

    Layers of a group have the same heads and ALiBi, and see as far; they may differ in scale, softcap and sinks.

    Args:
        name: of the backends; `auto` for the fastest of each group.
        specs: of each layer, the part of this rank; those that keep a state are passed over.
        kernels: of the model.
        page_size: tokens per page.

    Attributes:
        groups: of layers; as many, and in the order of, `KVCacheParams.groups`.
        page_layers: for each layer the one whose pages it uses; None where it keeps a state instead.
        obstacles: of each group, what keeps the kernels from computing it; None for nothing.

    Raises:
        UnsupportedAttentionError: a backend that was asked for by name cannot do what a layer needs.
        UnsupportedModelError: a layer is to read pages that no earlier one like it writes, or no layer has any.
    """

    def __init__(
        self,
        name: AttentionName,
        specs: Sequence[AttentionSpec | StateSpec | None],
        kernels: NativeKernels,
        page_size: int,
    ) -> None:
        self.groups = kv_groups(specs)
        spec_of = _attention_of(specs)
        pages_of = {layer: layer if spec.kv_layer is None else spec.kv_layer for layer, spec in spec_of.items()}
        self.page_layers = tuple(pages_of.get(layer) for layer in range(len(specs)))
        number_of = {layer: number for number, group in enumerate(self.groups) for layer in group.layers}
        self._group_of = {layer: number_of[pages_of[layer]] for layer in spec_of}
        firsts = [spec_of[group.layers[0]] for group in self.groups]
        self.obstacles = [NativeAttention.why_not(spec, kernels, page_size) for spec in firsts]
        numbers = {spec: self._group_of[layer] for layer, spec in spec_of.items()}
        made = {
            spec: _backend(name, spec, self.obstacles[number], kernels, page_size) for spec, number in numbers.items()
        }
        self._backends = {layer: made[spec] for layer, spec in spec_of.items()}
        self._first = [self._backends[group.layers[0]] for group in self.groups]

    def __getitem__(self, layer_idx: int) -> AttentionBackend:
        """Returns the backend of a layer."""
        if layer_idx not in self._backends:
            raise UnsupportedModelError(
                "the model's module has attention in a layer of which its config says nothing",
                found=layer_idx,
                allowed=", ".join(map(str, self._backends)),
                cure="Let the config's `layers` have a spec for every layer that the module makes.",
            )
        return self._backends[layer_idx]

    def group_of(self, layer_idx: int) -> int:
        """Returns the number of the group that a layer belongs to."""
        return self._group_of[layer_idx]

    @property
    def of_groups(self) -> Sequence[AttentionBackend]:
        """A backend of each group; all of a group are of one class."""
        return self._first

    @property
    def of_layers(self) -> Sequence[AttentionBackend]:
        """The backend of each layer that has attention."""
        return [*self._backends.values()]

    def page_shapes(self, group: int, num_pages: int, page_size: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Returns the shapes of a layer's key and value pages; None for values that lie in the keys."""
        return self._first[group].page_shapes(num_pages, page_size)

    def plan(self, batch: RaggedBatch, page_size: int, device: torch.device) -> tuple[Any, ...]:
        """Does each group's part of a step's work that is the same for all of its layers."""
        return tuple(backend.plan(batch, page_size, device, group) for group, backend in enumerate(self._first))


def kv_groups(specs: Sequence[AttentionSpec | StateSpec | None]) -> tuple[KVGroup, ...]:
    """Returns the groups of layers whose pages are alike, in the order of their first layers.

    Raises:
        UnsupportedModelError: a layer is to read pages that no earlier one like it writes, or no layer has any.
    """
    spec_of = _attention_of(specs)
    if not spec_of:
        raise UnsupportedModelError(
            "the model has no layer with attention", allowed="at least one, besides those that keep a state"
        )
    layers_of: dict[AttentionSpec, list[int]] = defaultdict(list)
    for layer, spec in spec_of.items():
        if spec.kv_layer is None:
            layers_of[_shared_part(spec)].append(layer)
            continue
        read = spec_of.get(spec.kv_layer)
        can_read = read is not None and read.kv_layer is None and _shared_part(read) == _shared_part(spec)
        if not can_read or spec.kv_layer >= layer:
            raise UnsupportedModelError(
                f"layer {layer} of the model cannot read the keys of layer {spec.kv_layer}",
                found=spec,
                allowed="an earlier layer with keys of its own, the same heads and the same window",
            )
    return tuple(
        KVGroup(
            layers=tuple(layers),
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            value_dim=0 if spec.values_in_keys else spec.value_size,
            sliding_window=spec.sliding_window,
            chunk=spec.chunk,
        )
        for spec, layers in layers_of.items()
    )


def _attention_of(specs: Sequence[AttentionSpec | StateSpec | None]) -> dict[int, AttentionSpec]:
    return {layer: spec for layer, spec in enumerate(specs) if isinstance(spec, AttentionSpec)}


def _shared_part(spec: AttentionSpec) -> AttentionSpec:
    """What layers of a group have in common: all that a plan and pages depend on."""
    return replace(spec, value_dim=spec.value_size, scale=1.0, softcap=None, has_sinks=False, kv_layer=None)


def _backend(
    name: AttentionName, spec: AttentionSpec, obstacle: str | None, kernels: NativeKernels, page_size: int
) -> AttentionBackend:
    if name is AttentionName.reference:
        return ReferenceAttention(spec)
    if name is AttentionName.paged or (name is AttentionName.auto and obstacle is not None):
        return PagedAttention(spec)
    return NativeAttention(spec, kernels, page_size)
