"""The attention seam: what a model needs, and what a backend promises."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.kv_cache import RaggedBatch
from pipezoo_core.layers import Heads, apply_rotary

__all__ = ["AttentionBackend", "AttentionSpec", "Rotation"]

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the rows' positions, each [T, rotary_dim]: see `layers.RotaryEmbedding`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """What an attention layer computes.

    For a query at position i and a key at position j of the same request, j ≤ i, the score is `scale · q·k`; with a
    softcap c it becomes `c · tanh(score / c)`; then ALiBi takes `alibi_slope · (i - j)` off. Keys with
    `i - j ≥ sliding_window`, or of another chunk of positions, are left out. The softmax of the scores weighs the
    values (Vaswani et al., 2017). With sinks, each head has one more score, which takes part in the sum without a
    value.

    Attributes:
        num_heads: query heads.
        num_kv_heads: key/value heads; each serves `num_heads / num_kv_heads` query heads in a row (Ainslie et al.,
            2023).
        head_dim: numbers per head of queries and keys.
        scale: factor on q·k.
        sliding_window: how many tokens a query sees, itself included; None for all.
        alibi_slopes: one per query head (Press et al., 2022); None for no ALiBi.
        value_dim: numbers per head of values and of the result; None for `head_dim`.
        chunk: how many positions make a chunk, of which a query sees its own (Llama 4); None for no chunks.
        softcap: bound of the scores (Gemma 2); None for none.
        has_sinks: whether the layer has a learned score per head that takes part in the sum (Xiao et al., 2023;
            gpt-oss).
        kv_layer: reads the keys and values of this earlier layer, and writes none; None for its own.
        values_in_keys: the values are the first `value_dim` numbers of the keys (multi-head latent attention, DeepSeek
            V2). A rotation is of the numbers behind them.

    Raises:
        UnsupportedModelError: values that lie in the keys are wider than these.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None
    alibi_slopes: tuple[float, ...] | None = None
    value_dim: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    kv_layer: int | None = None
    values_in_keys: bool = False

    def __post_init__(self) -> None:
        if self.values_in_keys and self.value_size > self.head_dim:
            raise UnsupportedModelError(
                "the values lie in the keys, and are wider than these",
                found=f"value_dim {self.value_dim}",
                allowed=f"at most the head_dim, {self.head_dim}",
            )

    @property
    def value_size(self) -> int:
        """Numbers per head of values and of the result."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def first_rotated(self) -> int:
        """Where in a head of queries and keys a rotation begins."""
        return self.value_size if self.values_in_keys else 0

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
        if self.chunk is not None:
            chunks = (
                positions.div(self.chunk, rounding_mode="floor") for positions in (query_positions, key_positions)
            )
            query_chunks, key_chunks = chunks
            is_unseen = is_unseen | (query_chunks.unsqueeze(-1) != key_chunks.unsqueeze(-2))
        if self.alibi_slopes is None:
            zeros = torch.zeros(distance.shape, dtype=torch.float32, device=distance.device)
            return zeros.masked_fill_(is_unseen, -torch.inf)
        slopes = torch.tensor(self.alibi_slopes, dtype=torch.float32, device=distance.device).view(-1, 1, 1)
        return (-slopes * distance.unsqueeze(-3)).masked_fill_(is_unseen.unsqueeze(-3), -torch.inf)


class AttentionBackend(abc.ABC):
    """One way to compute attention over pages. Chosen once, at load; holds no state between steps.

    Args:
        spec: what the layers need that it serves.

    Attributes:
        checks_tensors: whether `attend` checks what it is given; else `Attention` does.

    Raises:
        UnsupportedAttentionError: the backend cannot do that.
    """

    name: ClassVar[str]
    checks_tensors: ClassVar[bool] = False

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec

    @abc.abstractmethod
    def page_shapes(self, num_pages: int, page_size: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Returns the shapes of a layer's key and value pages; None for values that lie in the keys."""

    @abc.abstractmethod
    def plan(self, batch: RaggedBatch, page_size: int, device: torch.device, group: int) -> Any:
        """Does the part of a step's work that is the same for all layers of a group."""

    @abc.abstractmethod
    def attend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        key_pages: Tensor,
        value_pages: Tensor,
        plan: Any,
        rotation: Rotation | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Writes the chunk's keys and values into their pages and returns what its queries see.

        Args:
            q: [T, num_heads · head_dim], the requests' chunks one after another.
            k: [T, num_kv_heads · head_dim]; None where the layer reads another one's pages.
            v: [T, num_kv_heads · value_size]; None there, and where the values are a part of the keys. All three
                contiguous within a row.
            key_pages: of this layer, shaped as `page_shapes` says.
            value_pages: likewise; the key pages where the values are a part of the keys.
            plan: what `plan` returned for the step.
            rotation: the first `rotary_dim` numbers of queries and keys, or where the values are a part of the keys
                the first behind them, are rotated by it before anything else; None for no rotation.
            sinks: [num_heads], where the spec has them.

        Returns:
            [T, num_heads · value_size], of the dtype of `q`.
        """

    @abc.abstractmethod
    def working_memory(self, num_rows: int, max_length: int, itemsize: int) -> int:
        """Returns about the bytes that a layer takes at most, besides what it is given and returns.

        Args:
            num_rows: of a full step.
            max_length: tokens of the longest request.
            itemsize: bytes of a number.
        """

    def planned_memory(self, num_requests: int, max_length: int) -> int:
        """Returns the bytes that a step's plan keeps at most, as long as the step takes, beside `working_memory`.

        Args:
            num_requests: of a full batch.
            max_length: tokens of the longest request.
        """
        del num_requests, max_length
        return 0

    def heads(
        self, q: Tensor, k: Tensor | None, v: Tensor | None, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns [T, heads, head_dim] of each, queries and keys rotated; values that lie in the keys, too."""
        spec = self.spec
        q_TND = self._rotated(q, rotation)
        k_TKD = None if k is None else self._rotated(k, rotation)
        if spec.values_in_keys:
            return q_TND, k_TKD, None if k_TKD is None else k_TKD[..., : spec.value_size]
        return q_TND, k_TKD, None if v is None else v.unflatten(-1, (-1, spec.value_size))

    def _rotated(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        heads_TND = x.unflatten(-1, (-1, self.spec.head_dim))
        if rotation is None:
            return heads_TND
        rotary_dim, first = rotation[0].shape[-1], self.spec.first_rotated
        before, plain, after = heads_TND.tensor_split((first, first + rotary_dim), dim=-1)
        turned = apply_rotary(plain.flatten(1), *rotation).unflatten(-1, (-1, rotary_dim))
        return turned if rotary_dim == self.spec.head_dim else torch.cat((before, turned, after), dim=-1)
