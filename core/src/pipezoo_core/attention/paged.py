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

from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipezoo_core.attention.base import AttentionBackend, AttentionSpec, Rotation
from pipezoo_core.kv_cache import RaggedBatch
from pipezoo_core.paging import first_visible

__all__ = ["PagedAttention"]

_UNSEEN = -1e30  # finite, so that a page nobody sees gives a weight of 0 and not NaN
_MAX_GAPS = 1.5  # read a range of pages in place while at most so many times the wanted ones lie in it


@dataclass(frozen=True, slots=True)
class _PageGroup:
    """Pages that go through one batched product, each with up to S decoding requests that see it.

    Attributes:
        pages: the range of pages, or their numbers [P].
        owners: int64 [P · S], which decoding request; 0 with the bias of an unseen key where a page has fewer.
        bias: [P, 1 or K, S, 1 or G, page_size], added to the scores.
    """

    pages: slice | Tensor
    owners: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class _Prefill:
    """One request that feeds more than one token: its rows, and what it needs to see earlier ones.

    Attributes:
        rows: its rows of the step.
        pages: int64, those that it sees.
        has_past: whether it sees more than the chunk's own keys.
        num_keys: tokens of the request in these pages after this step.
        bias: added to the scores; None for plain causal attention.
    """

    rows: slice
    pages: Tensor
    has_past: bool
    num_keys: int
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """One step's work, the same for all layers."""

    write_pages: Tensor
    write_places: Tensor
    decode_rows: Tensor
    groups: list[_PageGroup]
    prefills: list[_Prefill]


class PagedAttention(AttentionBackend):
    """Batched over pages. Pages are `[num_pages, num_kv_heads, page_size, head_dim or value_size]`."""

    name = "paged"

    def page_shapes(self, num_pages: int, page_size: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Returns the shapes of a layer's key and value pages; None for values that lie in the keys."""
        cells = (num_pages, self.spec.num_kv_heads, page_size)
        return (*cells, self.spec.head_dim), None if self.spec.values_in_keys else (*cells, self.spec.value_size)

    def plan(self, batch: RaggedBatch, page_size: int, device: torch.device, group: int = 0) -> PagedPlan:
        """Sorts the step's requests into decodes and prefills and prepares indices and biases."""
        offsets = batch.row_offsets
        spans = list(zip(batch.active_lengths, batch.cache_lengths, batch.pages[group], strict=True))
        write_pages, write_places = batch.cells(page_size, group)
        decodes = [i for i, (active, _, _) in enumerate(spans) if active == 1]
        return PagedPlan(
            write_pages=_integers(write_pages, device),
            write_places=_integers(write_places, device),
            decode_rows=_integers([offsets[i] for i in decodes], device),
            groups=_page_groups(
                self.spec,
                [batch.cache_lengths[i] for i in decodes],
                [batch.pages[group][i] for i in decodes],
                page_size,
                device,
            ),
            prefills=[
                _prefill(self.spec, slice(offsets[i], offsets[i + 1]), start, pages, page_size, device)
                for i, (active, start, pages) in enumerate(spans)
                if active > 1
            ],
        )

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

    def _prefill(
        self, q_TND: Tensor, keys_KSD: Tensor, values_KSD: Tensor, bias: Tensor | None, sinks: Tensor | None
    ) -> Tensor:
        repeats = self.spec.num_groups
        q_NTD = q_TND.transpose(0, 1)
        keys_NSD, values_NSD = (x.repeat_interleave(repeats, 0) for x in (keys_KSD, values_KSD))
        if self.spec.softcap is not None or sinks is not None:
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
        self, q_RND: Tensor, key_pages: Tensor, value_pages: Tensor, groups: list[_PageGroup], sinks: Tensor | None
    ) -> Tensor:
        parts = [self._over_pages(q_RND, key_pages, value_pages, group) for group in groups]
        owners = torch.cat([group.owners for group in groups])
        m_IN, l_IN, o_IND = (torch.cat(part) for part in zip(*parts, strict=True))  # I items: a page and an owner
        shape = (len(q_RND), self.spec.num_heads)
        by_owner = owners.unsqueeze(-1).expand_as(m_IN)
        max_RN = m_IN.new_full(shape, _UNSEEN)
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
        self, q_RND: Tensor, key_pages: Tensor, value_pages: Tensor, group: _PageGroup
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


def _integers(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def _spoiled(*parts: Tensor) -> Tensor:
    """Returns for each row of [T, ...] 0, or NaN where a part of it is NaN or infinite, [T, 1]."""
    greatest = [torch.linalg.vector_norm(part.flatten(1), torch.inf, -1, keepdim=True) for part in parts]
    return sum(((number - number) for number in greatest), start=torch.zeros_like(greatest[0]))


def _finite(x: Tensor) -> Tensor:
    """Decodes multiply what they do not see by 0, and 0 · NaN is NaN: one request's overflow must not reach others."""
    return x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _gather(pages: Tensor, prefill: _Prefill) -> Tensor:
    return pages[prefill.pages].transpose(0, 1).flatten(1, 2)[:, : prefill.num_keys]


def _prefill(
    spec: AttentionSpec, rows: slice, cached: int, pages: list[int], page_size: int, device: torch.device
) -> _Prefill:
    end = cached + rows.stop - rows.start
    first = first_visible(cached, spec.sliding_window, spec.chunk) // page_size
    plain = spec.alibi_slopes is None and first_visible(end - 1, spec.sliding_window, spec.chunk) == 0
    keys = torch.arange(first * page_size, end, dtype=torch.int64, device=device)
    return _Prefill(
        rows=rows,
        pages=_integers(pages[first : -(-end // page_size)], device),
        has_past=cached > 0,
        num_keys=len(keys),
        bias=None if plain and not cached else spec.bias(keys[cached - first * page_size :], keys),
    )


def _page_groups(
    spec: AttentionSpec, cache_lengths: list[int], pages: list[list[int]], page_size: int, device: torch.device
) -> list[_PageGroup]:
    """Groups the pages of decoding requests by how many share them: one, two, up to four, up to eight, ….

    Each group is padded to the most that share one of its pages, so no page to more than twice its number.

    Requests 0 and 1, both of 9 tokens in pages of 4, share page 3; request 0 goes on in pages 0 and 1, request 1 in
    pages 4 and 5. Of one: the range 0 to 6 with owners [0, 0, -, -, 1, 1], in which pages 2 and 3 are unseen. Of two:
    page 3 with owners [0, 1].
    """
    seen: dict[int, list[tuple[int, int]]] = defaultdict(list)  # page -> (request, position of its first token)
    for request, (position, own) in enumerate(zip(cache_lengths, pages, strict=True)):
        first = first_visible(position, spec.sliding_window, spec.chunk) // page_size
        for index in range(first, position // page_size + 1):
            seen[own[index]].append((request, index * page_size))
    groups: dict[int, list[int]] = defaultdict(list)
    for page in sorted(seen):
        groups[(len(seen[page]) - 1).bit_length()].append(page)
    return [_page_group(spec, numbers, seen, cache_lengths, page_size, device) for numbers in groups.values()]


def _page_group(
    spec: AttentionSpec,
    numbers: list[int],
    seen: dict[int, list[tuple[int, int]]],
    cache_lengths: list[int],
    page_size: int,
    device: torch.device,
) -> _PageGroup:
    wanted = set(numbers)
    span = range(numbers[0], numbers[-1] + 1)
    in_place = len(span) <= _MAX_GAPS * len(numbers)
    listed = list(span) if in_place else numbers
    num_sharers = max(len(seen[page]) for page in numbers)
    owners, queries, starts = [], [], []
    for page in listed:
        sharers = seen[page] if page in wanted else []
        for request, start in sharers:
            owners.append(request)
            queries.append(cache_lengths[request])
            starts.append(start)
        for _ in range(num_sharers - len(sharers)):
            owners.append(0)
            queries.append(-1)  # before every key: sees nothing
            starts.append(0)
    places = torch.arange(page_size, dtype=torch.int64, device=device)
    keys = _integers(starts, device).unsqueeze(-1) + places  # [I, page_size]
    bias = spec.bias(_integers(queries, device).unsqueeze(-1), keys).clamp_(min=_UNSEEN)
    bias = bias.view(len(listed), num_sharers, -1, page_size)  # [P, S, 1 or N, page_size]
    if spec.alibi_slopes is not None:
        bias = bias.unflatten(2, (spec.num_kv_heads, spec.num_groups)).transpose(1, 2)  # [P, K, S, G, page_size]
    else:
        bias = bias.unsqueeze(1)  # [P, 1, S, 1, page_size]
    return _PageGroup(
        pages=slice(span.start, span.stop) if in_place else _integers(numbers, device),
        owners=_integers(owners, device),
        bias=bias,
    )
