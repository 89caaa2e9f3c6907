"""Attention as the formula has it, one query and one head at a time: slow, obviously right, the others' oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from pipezoo_core.attention.base import AttentionBackend, Rotation
from pipezoo_core.kv_cache import KVCacheParams, RaggedBatch

__all__ = ["ReferenceAttention"]


class ReferenceAttention(AttentionBackend):
    """Loops over rows and heads, in float64. Pages are `[num_pages, page_size, num_kv_heads, head_dim]`."""

    name = "reference"

    def page_shape(self, num_pages: int, params: KVCacheParams) -> tuple[int, ...]:
        """Returns the shape of one layer's key (and value) pages."""
        return (num_pages, params.page_size, params.num_kv_heads, params.head_dim)

    def plan(self, batch: RaggedBatch, page_size: int, device: torch.device) -> RaggedBatch:
        """Takes the lists as they are."""
        del page_size, device
        return batch

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_pages: Tensor,
        value_pages: Tensor,
        plan: RaggedBatch,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """Writes each row's key and value, then answers each row's queries head by head."""
        q_TND, k_TKD, v_TKD = self.heads(q, k, v, rotation)
        page_size = key_pages.shape[1]
        out_TND = torch.empty_like(q_TND)
        row = 0
        for active, cached, pages in zip(plan.active_lengths, plan.cache_lengths, plan.pages, strict=True):
            for position in range(cached, cached + active):
                cell = (pages[position // page_size], position % page_size)
                key_pages[cell], value_pages[cell] = k_TKD[row], v_TKD[row]
                first = 0 if self.spec.sliding_window is None else max(0, position - self.spec.sliding_window + 1)
                seen = [(pages[j // page_size], j % page_size) for j in range(first, position + 1)]
                keys = torch.stack([key_pages[at] for at in seen]).double()
                values = torch.stack([value_pages[at] for at in seen]).double()
                for head in range(self.spec.num_heads):
                    kv_head = head // self.spec.num_groups
                    out_TND[row, head] = self._one(
                        q_TND[row, head].double(), keys[:, kv_head], values[:, kv_head], head
                    )
                row += 1
        return out_TND.flatten(1)

    def _one(self, q_D: Tensor, keys_SD: Tensor, values_SD: Tensor, head: int) -> Tensor:
        scores_S = self.spec.scale * (keys_SD @ q_D)
        if self.spec.alibi_slopes is not None:
            distance_S = torch.arange(len(scores_S) - 1, -1, -1, dtype=torch.int64, device=q_D.device)
            scores_S -= self.spec.alibi_slopes[head] * distance_S
        return scores_S.softmax(-1) @ values_SD
