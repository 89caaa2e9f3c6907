"""Attention in plain torch, batched over pages: fast on a CPU, correct on any device.

A step's rows are of two kinds. A request that feeds one token (decode) reads all its pages and computes little: those
requests go through one batched matrix product with *pages* as its items, so that keys and values are read where they
lie, without a copy, and a page that many requests share is read once for all of them. A request that feeds more
(prefill) computes much: it goes through torch's fused attention alone.

The partial results of a request's pages are joined as in FlashDecoding (Dao et al., 2023): with m the largest score
of a page, l the sum of `exp(score - m)` and o the values weighted by it, and M the largest m of all pages, the
result is `sum(exp(m - M) · o) / sum(exp(m - M) · l)`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipezoo_core.attention.base import AttentionBackend, Rotation
from pipezoo_core.attention.paged_plan import UNSEEN, PagedPlan, PageGroup, Prefill, plan_pages
from pipezoo_core.kv_cache import RaggedBatch

__all__ = ["PagedAttention"]

_BIAS_BYTES = 13  # of each query and key: their distance in int64, whether it is seen, and the bias in float32
_FLOAT_BYTES = 4


class PagedAttention(AttentionBackend):
    """Batched over pages. Pages are `[num_pages, num_kv_heads, page_size, head_dim or value_size]`."""

    name = "paged"

    def page_shapes(self, num_pages: int, page_size: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Returns the shapes of a layer's key and value pages; None for values that lie in the keys."""
        cells = (num_pages, self.spec.num_kv_heads, page_size)
        return (*cells, self.spec.head_dim), None if self.spec.values_in_keys else (*cells, self.spec.value_size)

    def plan(self, batch: RaggedBatch, page_size: int, device: torch.device, group: int) -> PagedPlan:
        """Sorts the step's requests into decodes and prefills and prepares indices and biases."""
        return plan_pages(self.spec, batch, page_size, device, group)

    def attend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        key_pages: Tensor,
        value_pages: Tensor,
        plan: PagedPlan,
        rotation: Rotation | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Writes the chunk, then answers decodes over their pages and prefills one by one.

        Pages hold nothing of what is not finite, because it would reach other requests: rows where there is something
        get NaN here.
        """
        q_TND, k_TKD, v_TKD = self.heads(q, k, v, rotation)
        spoiled_T1 = _spoiled(*(x for x in (q_TND, k_TKD, v_TKD) if x is not None))
        if k_TKD is not None and v_TKD is not None:
            key_pages[plan.write_pages, :, plan.write_places] = _finite(k_TKD)
            if not self.spec.values_in_keys:
                value_pages[plan.write_pages, :, plan.write_places] = _finite(v_TKD)
        value_pages = value_pages[..., : self.spec.value_size]
        if not plan.prefills:
            return self._decode(q_TND, key_pages, value_pages, plan.groups, sinks).flatten(1).add_(spoiled_T1)
        out_TND = q.new_empty(len(q), self.spec.num_heads, self.spec.value_size)
        if plan.groups:
            decoded = self._decode(q_TND[plan.decode_rows], key_pages, value_pages, plan.groups, sinks)
            out_TND[plan.decode_rows] = decoded
        for prefill in plan.prefills:
            rows = prefill.rows
            if prefill.has_past or k_TKD is None or v_TKD is None:
                keys_KSD = _gather(key_pages, prefill)
                values_KSD = _gather(value_pages, prefill)
            else:
                keys_KSD, values_KSD = k_TKD[rows].transpose(0, 1), v_TKD[rows].transpose(0, 1)
            out_TND[rows] = self._prefill(q_TND[rows], keys_KSD, values_KSD, prefill.bias, sinks)
        return out_TND.flatten(1).add_(spoiled_T1)

    def working_memory(self, num_rows: int, max_length: int, itemsize: int) -> int:
        """Returns about the bytes that a full step takes: of the longest request, and what others keep beside it.

        Those are the bias, copies of queries, keys and values, and in float32 all scores and their exponentials, where
        torch's fused attention does not do without: it wants values as wide as keys, and no bias for each head.
        Requests are answered one by one, but the queries and keys of all are rotated before, and prompts with a past or
        a window have a bias each until the step ends.
        """
        spec, num_heads = self.spec, self.spec.num_heads
        rows, rounded = min(num_rows, max_length), itemsize if itemsize < _FLOAT_BYTES else 0
        cells, width = rows * max_length, spec.head_dim + spec.value_size
        queries, keys = rows * num_heads * spec.head_dim, max_length * num_heads * width
        gathered = 2 * max_length * spec.num_kv_heads * width
        size = _BIAS_BYTES * cells + itemsize * (2 * queries + keys + gathered)
        scores, has_slopes = num_heads * cells, spec.alibi_slopes is not None
        of_others = num_rows - rows
        size += itemsize * of_others * (num_heads + spec.num_kv_heads) * spec.head_dim
        size += _FLOAT_BYTES * of_others * max_length * (num_heads if has_slopes else 1)
        size += scores * _FLOAT_BYTES * has_slopes
        if self._needs_formula:
            return size + scores * (2 * _FLOAT_BYTES + rounded)
        if spec.value_size == spec.head_dim and not has_slopes:
            return size
        size += scores * (2 * _FLOAT_BYTES + rounded * has_slopes)
        return size + (_FLOAT_BYTES * (queries + keys) if rounded else 0)

    @property
    def _needs_formula(self) -> bool:
        return self.spec.softcap is not None or self.spec.has_sinks

    def _prefill(
        self, q_TND: Tensor, keys_KSD: Tensor, values_KSD: Tensor, bias: Tensor | None, sinks: Tensor | None
    ) -> Tensor:
        repeats = self.spec.num_groups
        q_NTD = q_TND.transpose(0, 1)
        keys_NSD, values_NSD = (x.repeat_interleave(repeats, 0) for x in (keys_KSD, values_KSD))
        if self._needs_formula:
            return self._prefill_by_formula(q_NTD, keys_NSD, values_NSD, bias, sinks).transpose(0, 1)
        out_NTD = F.scaled_dot_product_attention(
            q_NTD.unsqueeze(0),
            keys_NSD.unsqueeze(0),
            values_NSD.unsqueeze(0),
            attn_mask=None if bias is None else bias.to(q_TND.dtype),
            is_causal=bias is None,
            scale=self.spec.scale,
        )[0]
        return out_NTD.transpose(0, 1)

    def _prefill_by_formula(
        self, q_NTD: Tensor, keys_NSD: Tensor, values_NSD: Tensor, bias: Tensor | None, sinks: Tensor | None
    ) -> Tensor:
        """What torch's fused attention has not: bounded scores, and sinks."""
        scores_NTS = self._capped((q_NTD * self.spec.scale) @ keys_NSD.transpose(1, 2))
        if bias is None:
            positions = torch.arange(q_NTD.shape[1], dtype=torch.int64, device=q_NTD.device)
            bias = self.spec.bias(positions, positions)
        scores_NTS = scores_NTS.add_(bias)
        if sinks is not None:
            column = sinks.float().view(-1, 1, 1).expand(-1, q_NTD.shape[1], 1)
            scores_NTS = torch.cat((scores_NTS, column), dim=-1)
        weights_NTS = scores_NTS.softmax(-1)[..., : keys_NSD.shape[1]]
        return weights_NTS.to(values_NSD.dtype) @ values_NSD

    def _capped(self, scores: Tensor) -> Tensor:
        """Returns the scores in float32, within the spec's bound."""
        scores, softcap = scores.float(), self.spec.softcap
        return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)

    def _decode(
        self, q_RND: Tensor, key_pages: Tensor, value_pages: Tensor, groups: list[PageGroup], sinks: Tensor | None
    ) -> Tensor:
        parts = [self._over_pages(q_RND, key_pages, value_pages, group) for group in groups]
        owners = torch.cat([group.owners for group in groups])
        m_IN, l_IN, o_IND = (torch.cat(part) for part in zip(*parts, strict=True))  # I items: a page and an owner
        shape = (len(q_RND), self.spec.num_heads)
        by_owner = owners.unsqueeze(-1).expand_as(m_IN)
        max_RN = m_IN.new_full(shape, UNSEEN)
        if sinks is not None:
            max_RN = sinks.float().repeat(shape[0], 1)
        max_RN = max_RN.scatter_reduce_(0, by_owner, m_IN, "amax")
        weight_IN = torch.exp(m_IN - max_RN[owners])
        sum_RN = m_IN.new_zeros(shape) if sinks is None else torch.exp(sinks.float() - max_RN)
        sum_RN = sum_RN.index_add_(0, owners, l_IN * weight_IN)
        out_RND = o_IND.new_zeros((*shape, o_IND.shape[-1]))
        out_RND = out_RND.index_add_(0, owners, o_IND * weight_IN.unsqueeze(-1))
        return (out_RND / sum_RN.unsqueeze(-1)).to(q_RND.dtype)

    def _over_pages(
        self, q_RND: Tensor, key_pages: Tensor, value_pages: Tensor, group: PageGroup
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_kv_heads, num_groups, head_dim = self.spec.num_kv_heads, self.spec.num_groups, self.spec.head_dim
        keys, values = key_pages[group.pages], value_pages[group.pages]  # [P, K, page_size, D]
        num_pages, page_size = len(keys), keys.shape[2]
        # [P · S, N, D] -> [P · K, S · G, D]: all queries that meet one head of one page
        queries = q_RND[group.owners].view(num_pages, -1, num_kv_heads, num_groups, head_dim)
        queries = queries.transpose(1, 2).reshape(num_pages * num_kv_heads, -1, head_dim)
        # scaled before it is rounded: the plain product may exceed 65,504, the greatest number of float16
        scores = torch.baddbmm(
            queries.new_zeros(()), queries, keys.flatten(0, 1).transpose(1, 2), beta=0, alpha=self.spec.scale
        )
        scores = self._capped(scores).view(num_pages, num_kv_heads, -1, num_groups, page_size)
        scores = scores.add_(group.bias)  # [P, K, S, G, page_size]
        m = scores.amax(-1, keepdim=True)
        weights = scores.sub_(m).exp_()
        total = weights.sum(-1)
        out = torch.bmm(
            weights.to(values.dtype).view(num_pages * num_kv_heads, -1, page_size), values.flatten(0, 1)
        ).float()
        out = out.view(num_pages, num_kv_heads, -1, num_groups, self.spec.value_size)

        def by_item(x: Tensor) -> Tensor:  # [P, K, S, G, ...] -> [P · S, N, ...]
            return x.transpose(1, 2).flatten(0, 1).flatten(1, 2)

        return by_item(m.squeeze(-1)), by_item(total), by_item(out)


def _spoiled(*parts: Tensor) -> Tensor:
    """Returns for each row of [T, ...] 0, or NaN where a part of it is NaN or infinite, [T, 1]."""
    greatest = [torch.linalg.vector_norm(part.flatten(1), torch.inf, -1, keepdim=True) for part in parts]
    return sum(((number - number) for number in greatest), start=torch.zeros_like(greatest[0]))


def _finite(x: Tensor) -> Tensor:
    """Decodes multiply what they do not see by 0, and 0 · NaN is NaN: one request's overflow must not reach others."""
    return x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _gather(pages: Tensor, prefill: Prefill) -> Tensor:
    return pages[prefill.pages].transpose(0, 1).flatten(1, 2)[:, : prefill.num_keys]
