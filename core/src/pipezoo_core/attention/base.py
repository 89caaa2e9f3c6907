"""The attention seam: what a model needs, what a backend promises, and the module that joins the two."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipezoo_core.errors import TensorMismatchError
from pipezoo_core.kv_cache import KVCacheInputs, KVCacheParams, RaggedBatch
from pipezoo_core.layers import Heads, apply_rotary

__all__ = ["Attention", "AttentionBackend", "AttentionSpec", "Rotation"]

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the rows' positions, each [T, head_dim]: see `layers.RotaryEmbedding`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """What a model's attention layers compute, the same for all of them.

    For a query at position i and a key at position j of the same request, j ≤ i, the score is
    `scale · q·k - alibi_slope · (i - j)`, left out where `i - j ≥ sliding_window`; the softmax of the scores weighs
    the values (Vaswani et al., 2017).

    Attributes:
        num_heads: query heads.
        num_kv_heads: key/value heads; each serves `num_heads / num_kv_heads` query heads in a row (Ainslie et al.,
            2023).
        head_dim: numbers per head.
        scale: factor on q·k.
        sliding_window: how many tokens a query sees, itself included; None for all.
        alibi_slopes: one per query head (Press et al., 2022); None for no ALiBi.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None
    alibi_slopes: tuple[float, ...] | None = None

    @property
    def num_groups(self) -> int:
        """Query heads per key/value head."""
        return self.num_heads // self.num_kv_heads

    def part(self, rank: int, num_ranks: int) -> AttentionSpec:
        """Returns what one of several ranks computes: see `layers.Heads`.

        Raises:
            InvalidSettingError: the heads cannot be divided among so many.
        """
        queries, keys = Heads(self.num_heads, self.num_kv_heads, self.head_dim).part(rank, num_ranks)
        return replace(
            self,
            num_heads=queries.stop - queries.start,
            num_kv_heads=keys.stop - keys.start,
            alibi_slopes=None if self.alibi_slopes is None else self.alibi_slopes[queries],
        )

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Returns what is added to the scores: minus infinity where a key is not seen, else ALiBi's penalty.

        Args:
            query_positions: [..., Q].
            key_positions: [..., K], of the same leading shape.

        Returns:
            float32 [..., Q, K], or [..., num_heads, Q, K] with ALiBi.
        """
        distance = query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)
        is_unseen = distance < 0
        if self.sliding_window is not None:
            is_unseen = is_unseen | (distance >= self.sliding_window)
        if self.alibi_slopes is None:
            zeros = torch.zeros(distance.shape, dtype=torch.float32, device=distance.device)
            return zeros.masked_fill_(is_unseen, -torch.inf)
        slopes = torch.tensor(self.alibi_slopes, dtype=torch.float32, device=distance.device).view(-1, 1, 1)
        return (-slopes * distance.unsqueeze(-3)).masked_fill_(is_unseen.unsqueeze(-3), -torch.inf)


class AttentionBackend(abc.ABC):
    """One way to compute attention over pages. Chosen once, at load; holds no state between steps.

    Args:
        spec: what the model's layers need.

    Raises:
        UnsupportedAttentionError: the backend cannot do that.
    """

    name: ClassVar[str]

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec

    @abc.abstractmethod
    def page_shape(self, num_pages: int, params: KVCacheParams) -> tuple[int, ...]:
        """Returns the shape of one layer's key (and value) pages."""

    @abc.abstractmethod
    def plan(self, batch: RaggedBatch, page_size: int, device: torch.device) -> Any:
        """Does the part of a step's work that is the same for all layers."""

    @abc.abstractmethod
    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_pages: Tensor,
        value_pages: Tensor,
        plan: Any,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """Writes the chunk's keys and values into their pages and returns what its queries see.

        Args:
            q: [T, num_heads · head_dim], the requests' chunks one after another.
            k: [T, num_kv_heads · head_dim].
            v: [T, num_kv_heads · head_dim]. All three contiguous within a row.
            key_pages: of this layer, shaped as `page_shape` says.
            value_pages: likewise.
            plan: what `plan` returned for the step.
            rotation: queries and keys are rotated by it before anything else; None for no rotation.

        Returns:
            [T, num_heads · head_dim], of the dtype of `q`.
        """

    def heads(self, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns [T, heads, head_dim] of each, queries and keys rotated."""
        if rotation is not None:
            q, k = apply_rotary(q, *rotation), apply_rotary(k, *rotation)
        q_TND, k_TKD, v_TKD = (x.unflatten(-1, (-1, self.spec.head_dim)) for x in (q, k, v))
        return q_TND, k_TKD, v_TKD


class Attention(nn.Module):
    """The attention of one layer, as a model uses it: `attention(q, k, v, kv, rotation)`.

    Args:
        layer_idx: which layer's pages to use.
        backend: computes it.
    """

    def __init__(self, layer_idx: int, backend: AttentionBackend) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.backend = backend

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, kv: KVCacheInputs[Any], rotation: Rotation | None = None
    ) -> Tensor:
        """Attends over each request's earlier tokens and its chunk.

        Args:
            q: [T, num_heads · head_dim].
            k: [T, num_kv_heads · head_dim].
            v: [T, num_kv_heads · head_dim].
            kv: the step's view of the cache; its pages of this layer are written.
            rotation: what `RotaryEmbedding` gave for the step, for models with rotary positions.

        Returns:
            [T, num_heads · head_dim].

        Raises:
            TensorMismatchError: a tensor has not the step's rows or the spec's heads, or they differ in dtype.
        """
        self._check(q, k, v, kv, rotation)
        key_pages, value_pages = kv.key_pages[self.layer_idx], kv.value_pages[self.layer_idx]
        return self.backend.attend(q, k, v, key_pages, value_pages, kv.plan, rotation)

    def _check(self, q: Tensor, k: Tensor, v: Tensor, kv: KVCacheInputs[Any], rotation: Rotation | None) -> None:
        spec, num_rows, dtype = self.backend.spec, kv.positions.shape[0], kv.key_pages[self.layer_idx].dtype
        queries, keys = (num_rows, spec.num_heads * spec.head_dim), (num_rows, spec.num_kv_heads * spec.head_dim)
        angles = (num_rows, spec.head_dim)
        cos, sin = rotation or (None, None)
        for name, x, shape in (
            ("q", q, queries),
            ("k", k, keys),
            ("v", v, keys),
            ("cos", cos, angles),
            ("sin", sin, angles),
        ):
            if x is not None and (x.shape != shape or x.dtype is not dtype):
                raise self._mismatch(name, x, dtype, shape)

    def _mismatch(self, name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int, int]) -> TensorMismatchError:
        spec = self.backend.spec
        return TensorMismatchError(
            f"the attention of layer {self.layer_idx} was given a tensor {name!r} that does not fit",
            found=f"{x.dtype} {list(x.shape)}",
            allowed=f"{dtype} {list(shape)}: {shape[0]} rows, {spec.num_heads} query heads and {spec.num_kv_heads} "
            f"key/value heads of {spec.head_dim} numbers",
            cure="Check the sizes in the model's module; ranks divide them as its config's `heads` says.",
        )
