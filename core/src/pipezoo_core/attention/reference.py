"""Attention as the formula has it, one query and one head at a time: slow, obviously right, the others' oracle."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pipezoo_core.attention.base import AttentionBackend, Rotation
from pipezoo_core.kv_cache import RaggedBatch
from pipezoo_core.paging import first_visible

__all__ = ["ReferenceAttention"]

_EXACT_BYTES = 8  # of a number in float64


class ReferenceAttention(AttentionBackend):
    """Loops over rows and heads, in float64. Pages are `[num_pages, page_size, num_kv_heads, head_dim]`."""

    name = "reference"

    def page_shapes(self, num_pages: int, page_size: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Returns the shapes of a layer's key and value pages; None for values that lie in the keys."""
        cells = (num_pages, page_size, self.spec.num_kv_heads)
        return (*cells, self.spec.head_dim), None if self.spec.values_in_keys else (*cells, self.spec.value_size)

    def plan(self, batch: RaggedBatch, page_size: int, device: torch.device, group: int) -> RaggedBatch:
        """Takes the lists as they are."""
        del page_size, device
        return replace(batch, pages=[batch.pages[group]])

    def attend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        key_pages: Tensor,
        value_pages: Tensor,
        plan: RaggedBatch,
        rotation: Rotation | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Writes each row's key and value, then answers each row's queries head by head."""
        q_TND, k_TKD, v_TKD = self.heads(q, k, v, rotation)
        spec, page_size = self.spec, key_pages.shape[1]
        out_TND = q.new_empty(len(q), spec.num_heads, spec.value_size)
        row = 0
        for active, cached, pages in zip(plan.active_lengths, plan.cache_lengths, plan.pages[0], strict=True):
            for position in range(cached, cached + active):
                cell = (pages[position // page_size], position % page_size)
                if k_TKD is not None and v_TKD is not None:
                    value_pages[cell][..., : spec.value_size] = v_TKD[row]
                    key_pages[cell] = k_TKD[row]
                first = first_visible(position, spec.sliding_window, spec.chunk)
                seen = [(pages[j // page_size], j % page_size) for j in range(first, position + 1)]
                keys = torch.stack([key_pages[at] for at in seen]).double()
                values = torch.stack([value_pages[at] for at in seen]).double()[..., : spec.value_size]
                for head in range(spec.num_heads):
                    kv_head = head // spec.num_groups
                    sink = None if sinks is None else sinks[head].double()
                    out_TND[row, head] = self._one(
                        q_TND[row, head].double(), keys[:, kv_head], values[:, kv_head], head, sink
                    )
                row += 1
        return out_TND.flatten(1)

    def working_memory(self, num_rows: int, max_length: int, itemsize: int) -> int:
        """Returns the bytes of the rotated heads, and of the longest request's keys and values, also in float64."""
        spec = self.spec
        rotated = num_rows * (spec.num_heads + spec.num_kv_heads) * spec.head_dim * itemsize
        return rotated + max_length * spec.num_kv_heads * (spec.head_dim + spec.value_size) * (itemsize + _EXACT_BYTES)

    def _one(self, q_D: Tensor, keys_SD: Tensor, values_SD: Tensor, head: int, sink: Tensor | None) -> Tensor:
        scores_S = self.spec.scale * (keys_SD @ q_D)
        if self.spec.softcap is not None:
            scores_S = self.spec.softcap * torch.tanh(scores_S / self.spec.softcap)
        if self.spec.alibi_slopes is not None:
            distance_S = torch.arange(len(scores_S) - 1, -1, -1, dtype=torch.int64, device=q_D.device)
            scores_S -= self.spec.alibi_slopes[head] * distance_S
        if sink is None:
            return scores_S.softmax(-1) @ values_SD
        return torch.cat((scores_S, sink.unsqueeze(0))).softmax(-1)[:-1] @ values_SD
