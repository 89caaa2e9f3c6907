"""Every backend against the reference, over random ragged batches and random page tables."""

import random

import pytest
import torch

from pipezoo_core.attention import AttentionSpec, PagedAttention, ReferenceAttention
from pipezoo_core.kv_cache import KVCacheParams, RaggedBatch

PAGE_SIZE = 4
NUM_PAGES = 64


def spec(**changes):
    values = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 8, "scale": 0.3, **changes}
    return AttentionSpec(**values)


SPECS = {
    "grouped": spec(),
    "multi_head": spec(num_kv_heads=6),
    "multi_query": spec(num_kv_heads=1),
    "window": spec(sliding_window=5),
    "alibi": spec(alibi_slopes=tuple(2.0**-i for i in range(6))),
    "alibi_window": spec(alibi_slopes=tuple(2.0**-i for i in range(6)), sliding_window=3),
}


def run(backend_class, spec, batch, q, k, v, past_k, past_v):
    backend = backend_class(spec)
    params = KVCacheParams(
        dtype=q.dtype, num_layers=1, num_kv_heads=spec.num_kv_heads, head_dim=spec.head_dim, page_size=PAGE_SIZE
    )
    shape = backend.page_shape(NUM_PAGES, params)
    key_pages, value_pages = torch.zeros(shape, dtype=q.dtype), torch.zeros(shape, dtype=q.dtype)
    page_first = shape[1] == PAGE_SIZE
    for pages, cached, keys, values in zip(batch.pages, batch.cache_lengths, past_k, past_v, strict=True):
        for position in range(cached):
            page, slot = pages[position // PAGE_SIZE], position % PAGE_SIZE
            at = (page, slot) if page_first else (page, slice(None), slot)
            key_pages[at], value_pages[at] = keys[position], values[position]
    return backend.attend(q, k, v, key_pages, value_pages, backend.plan(batch, PAGE_SIZE, torch.device("cpu")))


def random_case(spec, seed, active_lengths, cache_lengths, dtype=torch.float32, num_shared=0):
    """Random tensors; the first `num_shared` full pages of every request are the same pages."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def tensor(rows, heads):
        return torch.randn(rows, heads, spec.head_dim, generator=generator).to(dtype)

    numbers = rng.sample(range(NUM_PAGES), NUM_PAGES)
    shared, shared_k, shared_v = [numbers.pop() for _ in range(num_shared)], None, None
    if num_shared:
        shared_k = tensor(num_shared * PAGE_SIZE, spec.num_kv_heads)
        shared_v = tensor(num_shared * PAGE_SIZE, spec.num_kv_heads)
    pages, past_k, past_v = [], [], []
    for active, cached in zip(active_lengths, cache_lengths, strict=True):
        needed = -(-(active + cached) // PAGE_SIZE) - num_shared
        pages.append(shared + [numbers.pop() for _ in range(needed)])
        keys, values = tensor(cached, spec.num_kv_heads), tensor(cached, spec.num_kv_heads)
        if num_shared:
            keys[: len(shared_k)], values[: len(shared_v)] = shared_k, shared_v
        past_k.append(keys)
        past_v.append(values)
    batch = RaggedBatch(active_lengths, cache_lengths, [1] * len(pages), pages)
    rows = sum(active_lengths)
    return (
        batch,
        tensor(rows, spec.num_heads),
        tensor(rows, spec.num_kv_heads),
        tensor(rows, spec.num_kv_heads),
        past_k,
        past_v,
    )


BATCHES = {
    "one_decode": ([1], [0], 0),
    "decodes": ([1, 1, 1], [6, 3, 17], 0),
    "one_prefill": ([7], [0], 0),
    "chunks": ([3, 5], [4, 9], 0),
    "mixed": ([1, 1, 5, 2, 1], [6, 3, 0, 9, 12], 0),
    "prefill_first": ([5, 1], [0, 3], 0),
    "shared_prefix": ([1, 1, 1], [9, 12, 8], 2),
    "shared_and_chunks": ([1, 4, 1], [9, 8, 13], 2),
}


@pytest.mark.parametrize("batch_name", BATCHES)
@pytest.mark.parametrize("spec_name", SPECS)
def test_paged_equals_reference(spec_name, batch_name):
    spec = SPECS[spec_name]
    active, cached, num_shared = BATCHES[batch_name]
    for seed in range(3):
        case = random_case(spec, seed, active, cached, num_shared=num_shared)
        expected = run(ReferenceAttention, spec, *case)
        torch.testing.assert_close(run(PagedAttention, spec, *case), expected, atol=2e-6, rtol=1e-5)


def test_bfloat16_stays_within_its_rounding():
    case = random_case(SPECS["grouped"], 0, *BATCHES["mixed"][:2], dtype=torch.bfloat16)
    expected = run(ReferenceAttention, SPECS["grouped"], *case)
    torch.testing.assert_close(run(PagedAttention, SPECS["grouped"], *case), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_request_that_overflows_spoils_no_other(value):
    """Page 3, between the two pages of the decoding request, belongs to one whose keys and values overflowed."""
    spec = SPECS["grouped"]
    batch, q, k, v, past_k, past_v = random_case(spec, 0, [1, 3], [6, 0])
    batch = RaggedBatch([1, 3], [6, 0], [1, 1], [[2, 4], [3]])
    expected = run(ReferenceAttention, spec, batch, q, k, v, past_k, past_v)[0]
    for spoiled in (q, k, v):
        spoiled[1:] = value
    torch.testing.assert_close(run(PagedAttention, spec, batch, q, k, v, past_k, past_v)[0], expected)


def test_reference_equals_scaled_dot_product_attention():
    """The oracle itself, against torch, for one request without a past."""
    spec = SPECS["multi_head"]
    batch, q, k, v, past_k, past_v = random_case(spec, 0, [9], [0])
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (q, k, v)), is_causal=True, scale=spec.scale
    ).transpose(0, 1)
    torch.testing.assert_close(run(ReferenceAttention, spec, batch, q, k, v, past_k, past_v), expected)
