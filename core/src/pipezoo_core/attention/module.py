"""The attention of one layer, as a model's module uses it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipezoo_core.attention.backends import AttentionBackends
from pipezoo_core.attention.base import Rotation
from pipezoo_core.errors import TensorMismatchError
from pipezoo_core.kv_cache import KVCacheInputs

__all__ = ["Attention"]


class Attention(nn.Module):
    """The attention of one layer, as a model uses it: `attention(q, k, v, kv, rotation)`.

    Args:
        layer_idx: which layer's pages to use.
        backends: compute it.

    Raises:
        UnsupportedModelError: the config describes no attention of such a layer.
    """

    def __init__(self, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.backend = backends[layer_idx]
        self.group = backends.group_of(layer_idx)

    def forward(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        kv: KVCacheInputs[Any],
        rotation: Rotation | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attends over each request's earlier tokens and its chunk.

        Args:
            q: [T, num_heads · head_dim].
            k: [T, num_kv_heads · head_dim]; None where the spec says that the layer reads another one's keys.
            v: [T, num_kv_heads · value_size]; None there, and where the values are a part of the keys.
            kv: the step's view of the cache; its pages of this layer are written.
            rotation: what `RotaryEmbedding` gave for the step, for models with rotary positions. Where it is narrower
                than a head, the first numbers of each head are rotated; with values in keys, those behind the values.
            sinks: [num_heads], where the spec has them.

        Returns:
            [T, num_heads · value_size].

        Raises:
            TensorMismatchError: a tensor has not the step's rows or the spec's heads, or they differ in dtype, or one
                is missing or too many.
        """
        key_pages, value_pages = kv.key_pages[self.layer_idx], kv.value_pages[self.layer_idx]
        if not self.backend.checks_tensors:
            self._check(q, k, v, rotation, sinks, kv.positions.shape[0], key_pages.dtype)
        try:
            return self.backend.attend(q, k, v, key_pages, value_pages, kv.plans[self.group], rotation, sinks)
        except TensorMismatchError as error:
            what = f"the attention of layer {self.layer_idx}: {error.what}"
            raise TensorMismatchError(what, found=error.found, allowed=error.allowed, cure=error.cure) from error

    def _check(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        rotation: Rotation | None,
        sinks: Tensor | None,
        num_rows: int,
        dtype: torch.dtype,
    ) -> None:
        spec = self.backend.spec
        writes = spec.kv_layer is None
        width = 0 if rotation is None else rotation[0].shape[-1]
        most = spec.head_dim - spec.first_rotated
        angles = (num_rows, width if width % 2 == 0 and width <= most else most)
        cos, sin = rotation or (None, None)
        for name, x, shape in (
            ("q", q, (num_rows, spec.num_heads * spec.head_dim)),
            ("k", k, (num_rows, spec.num_kv_heads * spec.head_dim) if writes else None),
            ("v", v, (num_rows, spec.num_kv_heads * spec.value_size) if writes and not spec.values_in_keys else None),
            ("cos", cos, None if rotation is None else angles),
            ("sin", sin, None if rotation is None else angles),
            ("sinks", sinks, (spec.num_heads,) if spec.has_sinks else None),
        ):
            if (None if x is None else x.shape) != shape or (x is not None and x.dtype is not dtype):
                raise self._mismatch(name, x, dtype, shape)

    def _mismatch(
        self, name: str, x: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...] | None
    ) -> TensorMismatchError:
        spec = self.backend.spec
        wanted = "none" if shape is None else f"{dtype} {list(shape)}"
        return TensorMismatchError(
            f"the attention of layer {self.layer_idx} was given a tensor {name!r} that does not fit",
            found="none" if x is None else f"{x.dtype} {list(x.shape)}",
            allowed=f"{wanted}: the step's rows, {spec.num_heads} query heads and {spec.num_kv_heads} key/value heads "
            f"of {spec.head_dim} numbers, values of {spec.value_size}",
            cure="Check the sizes in the model's module; ranks divide them as its config's `heads` says.",
        )
