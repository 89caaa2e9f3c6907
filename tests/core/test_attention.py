"""Every backend against the reference, over random ragged batches and random page tables."""

import random
from dataclasses import replace

import pytest
import torch
from kernels_here import needs_kernels

from pipezoo_core.attention import (
    AttentionBackends,
    AttentionSpec,
    NativeAttention,
    PagedAttention,
    ReferenceAttention,
    kv_groups,
)
from pipezoo_core.config import AttentionName
from pipezoo_core.errors import UnsupportedAttentionError, UnsupportedModelError
from pipezoo_core.kv_cache import RaggedBatch
from pipezoo_core.layers import apply_rotary
from pipezoo_core.native import PANEL, NativeKernels

PAGE_SIZE = 32
NUM_PAGES = 96
CPU = torch.device("cpu")


def spec(**changes):
    values = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 32, "scale": 0.15, **changes}
    return AttentionSpec(**values)


SPECS = {
    "grouped": spec(),
    "multi_head": spec(num_kv_heads=6, head_dim=64),
    "multi_query": spec(num_kv_heads=1),
    "window": spec(sliding_window=40),
    "alibi": spec(alibi_slopes=tuple(2.0**-i for i in range(6))),
    "alibi_window": spec(alibi_slopes=tuple(2.0**-i for i in range(6)), sliding_window=21),
}
FURTHER = {
    "chunk": spec(chunk=48),
    "softcap": spec(softcap=0.7, scale=0.5),
    "sinks": spec(has_sinks=True),
    "sinks_window": spec(has_sinks=True, sliding_window=40),
    "narrow_values": spec(value_dim=64, head_dim=96),
    "wide_values": spec(value_dim=96),
    "wide_heads": spec(head_dim=512, num_heads=2, num_kv_heads=1, scale=0.03),
    "everything": spec(
        sliding_window=70,
        chunk=96,
        softcap=1.5,
        has_sinks=True,
        value_dim=64,
        alibi_slopes=(0.1, 0.0, 0.2, 0.0, 0, 1.0),
    ),
    "latent": spec(num_kv_heads=1, head_dim=96, value_dim=64, values_in_keys=True),
    "latent_window": spec(num_kv_heads=1, head_dim=96, value_dim=64, values_in_keys=True, sliding_window=40),
    "latent_softcap_sinks": spec(
        num_kv_heads=1, head_dim=64, value_dim=64, values_in_keys=True, softcap=0.7, has_sinks=True
    ),
    "latent_heads": spec(num_kv_heads=2, head_dim=64, value_dim=32, values_in_keys=True),
}
LATENT = {  # DeepSeek's sizes
    "latent_16": spec(num_heads=16, num_kv_heads=1, head_dim=576, value_dim=512, values_in_keys=True, scale=0.03),
    "latent_128": spec(num_heads=128, num_kv_heads=1, head_dim=576, value_dim=512, values_in_keys=True, scale=0.03),
}


def paged(spec, dtype):
    return PagedAttention(spec)


def native(spec, dtype):
    kernels = NativeKernels(CPU, dtype)
    if kernels.obstacle:
        pytest.skip(kernels.obstacle)
    return NativeAttention(spec, kernels, PAGE_SIZE)


BACKENDS = [paged, native]


def run(backend, batch, q, k, v, past_k, past_v, rotation=None, page_size=PAGE_SIZE):
    """Feeds each request's past as a prompt of its own, then the batch; the reference's is written to its pages."""
    if backend.spec.values_in_keys:
        v, past_v = None, [None] * len(past_v)
    key_shape, value_shape = backend.page_shapes(NUM_PAGES * PAGE_SIZE // page_size, page_size)
    key_pages = torch.zeros(key_shape, dtype=q.dtype)
    value_pages = key_pages if value_shape is None else torch.zeros(value_shape, dtype=q.dtype)
    sinks = sinks_of(backend.spec, q.dtype)
    for pages, cached, keys, values in zip(batch.pages[0], batch.cache_lengths, past_k, past_v, strict=True):
        if isinstance(backend, ReferenceAttention):  # it would take long
            for position in range(cached):
                at = (pages[position // page_size], position % page_size)
                key_pages[at] = keys[position].view(key_shape[2:])
                if value_shape is not None:
                    value_pages[at] = values[position].view(value_shape[2:])
        elif cached:
            past = backend.plan(RaggedBatch([cached], [0], [cached], [[pages]]), page_size, CPU, 0)
            queries = torch.zeros(cached, q.shape[1], dtype=q.dtype)
            backend.attend(queries, keys, values, key_pages, value_pages, past, sinks=sinks)
    plan = backend.plan(batch, page_size, CPU, 0)
    return backend.attend(q, k, v, key_pages, value_pages, plan, rotation, sinks)


def sinks_of(spec, dtype):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(spec.num_heads, generator=generator).to(dtype) if spec.has_sinks else None


def random_case(spec, seed, active_lengths, cache_lengths, dtype=torch.float32, num_shared=0):
    """Random tensors; the first `num_shared` full pages of every request are the same pages."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def tensor(rows, heads, size=spec.head_dim):
        return torch.randn(rows, heads * size, generator=generator).to(dtype)

    numbers = rng.sample(range(NUM_PAGES), NUM_PAGES)
    shared, shared_k, shared_v = [numbers.pop() for _ in range(num_shared)], None, None
    if num_shared:
        shared_k = tensor(num_shared * PAGE_SIZE, spec.num_kv_heads)
        shared_v = tensor(num_shared * PAGE_SIZE, spec.num_kv_heads, spec.value_size)
    pages, past_k, past_v = [], [], []
    for active, cached in zip(active_lengths, cache_lengths, strict=True):
        needed = -(-(active + cached) // PAGE_SIZE) - num_shared
        pages.append(shared + [numbers.pop() for _ in range(needed)])
        keys = tensor(cached, spec.num_kv_heads)
        values = tensor(cached, spec.num_kv_heads, spec.value_size)
        if num_shared:
            keys[: len(shared_k)], values[: len(shared_v)] = shared_k, shared_v
        past_k.append(keys)
        past_v.append(values)
    batch = RaggedBatch(active_lengths, cache_lengths, [1] * len(pages), [pages])
    rows = sum(active_lengths)
    return (
        batch,
        tensor(rows, spec.num_heads),
        tensor(rows, spec.num_kv_heads),
        tensor(rows, spec.num_kv_heads, spec.value_size),
        past_k,
        past_v,
    )


BATCHES = {
    "one_decode": ([1], [0], 0),
    "decodes": ([1, 1, 1], [60, 31, 170], 0),
    "one_prefill": ([57], [0], 0),
    "chunks": ([30, 50], [40, 93], 0),
    "mixed": ([1, 1, 50, 2, 1], [60, 32, 0, 90, 127], 0),
    "prefill_first": ([50, 1], [0, 33], 0),
    "shared_prefix": ([1, 1, 1], [90, 120, 80], 2),
    "shared_and_chunks": ([1, 40, 1], [90, 80, 130], 2),
    "long_decode": ([1, 1], [700, 256], 0),
    "long_shared_prefix": ([1] * 9, [600, 550, 520, 700, 540, 530, 600, 599, 513], 16),
    "long_shared_and_chunk": ([1, 3, 1, 1], [300, 310, 290, 270], 8),
}


CASES = [(name, batch) for name in SPECS for batch in BATCHES]
CASES += [(name, batch) for name in FURTHER for batch in ("decodes", "mixed", "shared_and_chunks", "long_decode")]


@pytest.mark.matrix
@pytest.mark.parametrize(("spec_name", "batch_name"), CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_reference(backend, spec_name, batch_name):
    spec = {**SPECS, **FURTHER}[spec_name]
    active, cached, num_shared = BATCHES[batch_name]
    case = random_case(spec, 0, active, cached, num_shared=num_shared)
    expected = run(ReferenceAttention(spec), *case)
    torch.testing.assert_close(run(backend(spec, torch.float32), *case), expected, atol=2e-6, rtol=1e-5)


CUT = {"all": spec(), "alibi": SPECS["alibi"], "latent": FURTHER["latent"],
       "window": spec(sliding_window=600), "chunk": spec(chunk=700)}  # fmt: skip
LONGER = [1, 3, 1, 1], [900, 800, 1300, 850], 25  # prefixes of 800 keys


@pytest.mark.parametrize("name", CUT)
def test_decodes_that_are_cut_into_longer_pieces(name, monkeypatch):
    """As those of long requests are: pieces of 256, 512 and 1,024 keys here, with a window or chunks of 256 each."""
    monkeypatch.setattr("pipezoo_core.attention.native._ALIKE", 1)
    spec = CUT[name]
    active, cached, num_shared = LONGER
    case = random_case(spec, 0, active, cached, num_shared=num_shared)
    expected = run(ReferenceAttention(spec), *case)
    torch.testing.assert_close(run(native(spec, torch.float32), *case), expected, atol=2e-6, rtol=1e-5)


def keys_read(attention, lengths, num_shared):
    """The sum over all items of a step in which requests of these lengths decode, whose first pages are the same."""
    pages = [[*range(num_shared), *(i * 10_000 + j for j in range(num_shared, -(-length // PAGE_SIZE)))]
             for i, length in enumerate(lengths, 1)]  # fmt: skip
    batch = RaggedBatch([1] * len(lengths), [length - 1 for length in lengths], [1] * len(lengths), [pages])
    tables, _, description = attention.plan(batch, PAGE_SIZE, CPU, 0).arrays
    first = (description[4] - tables.ctypes.data) // tables.itemsize
    items = tables[first : first + 7 * description[3]].reshape(-1, 7)
    return int((items[:, 4] - items[:, 3]).sum())


@pytest.mark.parametrize("border", [8192, 16384, 24576, 32768, 57344])
def test_decodes_of_any_lengths_share_the_reading_of_a_prefix(border):
    """All of it but a piece's part at its end, which is a 32nd of it and 256 keys at most."""
    attention = native(spec(), torch.float32)
    for common, lengths in (
        (border - 64, [border, border + 1]),
        (border // 2, [border - 1, 2 * border]),
        (border, [border + 1, border + 700, 4 * border]),
    ):
        apart = sum(length - common for length in lengths)
        read = keys_read(attention, lengths, common // PAGE_SIZE)
        assert read <= common + apart + (len(lengths) - 1) * (common // 32 + 256)
        assert read >= common + apart


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_stays_within_its_rounding(backend):
    spec = SPECS["grouped"]
    case = random_case(spec, 0, *BATCHES["mixed"][:2], dtype=torch.bfloat16)
    expected = run(ReferenceAttention(spec), *case)
    torch.testing.assert_close(run(backend(spec, torch.bfloat16), *case), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("spec_name", LATENT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_of_full_size(dtype, spec_name):
    spec = LATENT[spec_name]
    case = random_case(spec, 0, [1, 2], [260, 31], dtype=dtype)
    expected = run(ReferenceAttention(spec), *case)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(run(native(spec, dtype), *case), expected, **tolerance)


@pytest.mark.parametrize(
    ("spec_name", "rotary_dim"),
    [*(("narrow_values", dim) for dim in (2, 20, 32, 64, 96)), *(("latent", dim) for dim in (2, 20, 32))],
)
@pytest.mark.parametrize("backend", [*BACKENDS, lambda spec, dtype: ReferenceAttention(spec)])
def test_rotation(backend, spec_name, rotary_dim):
    """Rotating inside equals rotating before, all of each head or its first numbers, or those behind the values."""
    spec = FURTHER[spec_name]
    batch, q, k, v, past_k, past_v = random_case(spec, 0, *BATCHES["mixed"][:2])
    angles = torch.rand(len(q), rotary_dim // 2).repeat(1, 2)
    rotation = (angles.cos(), angles.sin())

    def rotate(x):
        heads = x.unflatten(-1, (-1, spec.head_dim))
        first = 64 if spec.values_in_keys else 0
        plain = heads[..., first : first + rotary_dim].flatten(1)
        turned = apply_rotary(plain, *rotation).unflatten(-1, (-1, rotary_dim))
        return torch.cat((heads[..., :first], turned, heads[..., first + rotary_dim :]), -1).flatten(1)

    rotated = (rotate(q), rotate(k))
    expected = run(ReferenceAttention(spec), batch, *rotated, v, past_k, past_v)
    found = run(backend(spec, torch.float32), batch, q, k, v, past_k, past_v, rotation)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_rows_of_a_merged_product():
    """Queries, keys and values may be columns of one tensor."""
    spec = SPECS["grouped"]
    batch, q, k, v, past_k, past_v = random_case(spec, 0, *BATCHES["mixed"][:2])
    columns = torch.cat((q, k, v), dim=-1).split([q.shape[1], k.shape[1], v.shape[1]], dim=-1)
    expected = run(native(spec, q.dtype), batch, q, k, v, past_k, past_v)
    assert torch.equal(run(native(spec, q.dtype), batch, *columns, past_k, past_v), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec_name", ["grouped", "latent"])
@pytest.mark.parametrize("batch_name", ["mixed", "long_shared_prefix", "long_shared_and_chunk"])
def test_a_request_does_not_depend_on_the_batch(dtype, spec_name, batch_name):
    """Bit for bit: alone, and in the batch of all, where some share a prefix."""
    check_each_alone({**SPECS, **FURTHER}[spec_name], dtype, *BATCHES[batch_name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CUT)
def test_a_long_request_does_not_depend_on_the_batch(dtype, name, monkeypatch):
    """With pieces of several sizes, of which some are shared."""
    monkeypatch.setattr("pipezoo_core.attention.native._ALIKE", 1)
    check_each_alone(CUT[name], dtype, *LONGER)


def check_each_alone(spec, dtype, active, cached, num_shared):
    batch, q, k, v, past_k, past_v = random_case(spec, 0, active, cached, dtype=dtype, num_shared=num_shared)
    together = run(native(spec, dtype), batch, q, k, v, past_k, past_v)
    for i in range(len(active)):
        rows = slice(batch.row_offsets[i], batch.row_offsets[i + 1])
        alone = RaggedBatch([active[i]], [cached[i]], [1], [[batch.pages[0][i]]])
        found = run(native(spec, dtype), alone, q[rows], k[rows], v[rows], [past_k[i]], [past_v[i]])
        assert torch.equal(found, together[rows])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec_name", ["grouped", "latent"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_request_that_overflows_spoils_no_other(value, spec_name, backend):
    """Page 3, between the two pages of the decoding request, belongs to one whose keys and values overflowed."""
    spec = {**SPECS, **FURTHER}[spec_name]
    batch, q, k, v, past_k, past_v = random_case(spec, 0, [1, 3], [60, 0])
    batch = RaggedBatch([1, 3], [60, 0], [1, 1], [[[2, 4], [3]]])
    expected = run(ReferenceAttention(spec), batch, q, k, v, past_k, past_v)[0]
    for spoiled in (q, k, v):
        spoiled[1:] = value
    torch.testing.assert_close(run(backend(spec, q.dtype), batch, q, k, v, past_k, past_v)[0], expected)


@pytest.mark.matrix
@pytest.mark.parametrize("backend", [*BACKENDS, lambda spec, dtype: ReferenceAttention(spec)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("spec_name", "which"),
    [(name, which) for name in ("grouped", "window", "latent") for which in "qkv" if (name, which) != ("latent", "v")],
)
def test_a_row_that_is_not_finite_shows(which, spec_name, dtype, value, backend):
    """Its own result is not finite; decodes of one part, of several, of a shared prefix, a chunk, and its neighbours.

    The second row of each request is the one that is asked for, where there are two.
    """
    spec = {**SPECS, **FURTHER}[spec_name]
    active, cached = [1, 1, 1, 3, 1], [64, 300, 310, 40, 64]
    batch, q, k, v, past_k, past_v = random_case(spec, 0, active, cached, dtype=dtype)
    sound = run(backend(spec, dtype), batch, q, k, v, past_k, past_v)
    for row, request in ((0, 0), (1, 1), (4, 3)):
        spoiled = {"q": q.clone(), "k": k.clone(), "v": v.clone()}
        spoiled[which][row, -1 if which == "q" else 0] = value
        found = run(backend(spec, dtype), batch, *spoiled.values(), past_k, past_v)
        assert not found[row].isfinite().all()
        others = [r for r in range(len(q)) if not batch.row_offsets[request] <= r < batch.row_offsets[request + 1]]
        assert torch.equal(found[others], sound[others])


@pytest.mark.parametrize("batch_name", ["decodes", "mixed"])
def test_float16_has_room_for_the_products_of_queries_and_keys(batch_name):
    """They are 204,800 here, which it has not, and 30,720 when scaled, which it has."""
    batch, q, k, v, past_k, past_v = random_case(SPECS["grouped"], 5, *BATCHES[batch_name][:2], torch.float16)
    q, k, past_k = q.fill_(80.0), k.fill_(80.0), [keys.fill_(80.0) for keys in past_k]
    out = run(PagedAttention(SPECS["grouped"]), batch, q, k, v, past_k, past_v)
    expected = run(ReferenceAttention(SPECS["grouped"]), batch, q, k, v, past_k, past_v)
    torch.testing.assert_close(out.float(), expected.float(), atol=5e-3, rtol=0)


def test_reference_equals_scaled_dot_product_attention():
    """The oracle itself, against torch, for one request without a past."""
    spec = SPECS["multi_head"]
    batch, q, k, v, past_k, past_v = random_case(spec, 0, [9], [0])
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.unflatten(-1, (-1, spec.head_dim)).transpose(0, 1) for x in (q, k, v)), is_causal=True, scale=spec.scale
    ).transpose(0, 1)
    torch.testing.assert_close(run(ReferenceAttention(spec), batch, q, k, v, past_k, past_v), expected.flatten(1))


@pytest.mark.parametrize(
    ("changes", "dtype", "page_size", "reason"),
    [
        ({"head_dim": 608}, torch.float32, 64, f"head_dim is 608, not a multiple of {PANEL} up to 576"),
        ({"value_dim": 40}, torch.float32, 64, f"value_dim is 40, not a multiple of {PANEL}"),
        ({"head_dim": 40}, torch.float32, 64, f"head_dim is 40, not a multiple of {PANEL}"),
        ({}, torch.float32, 16, "page_size is 16, not a multiple of 32"),
        ({}, torch.float16, 64, r"not torch\.float16"),
    ],
)
def test_where_native_cannot_be_used(changes, dtype, page_size, reason):
    with pytest.raises(UnsupportedAttentionError, match=reason):
        AttentionBackends(AttentionName.native, [spec(**changes)], NativeKernels(CPU, dtype), page_size)
    assert (
        AttentionBackends(AttentionName.auto, [spec(**changes)], NativeKernels(CPU, dtype), page_size)[0].name
        == "paged"
    )


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*SPECS, *FURTHER])
def test_the_size_of_pages_changes_no_result(name, dtype):
    spec, active, cached = {**SPECS, **FURTHER}[name], [1, 40, 1, 3], [600, 93, 31, 300]
    batch, *tensors = random_case(spec, 5, active, cached, dtype)
    expected = run(native(spec, dtype), batch, *tensors)
    for page_size in (64, 96, 128, 160, 224, 512):
        num_pages = NUM_PAGES * PAGE_SIZE // page_size
        numbers = iter(random.Random(page_size).sample(range(num_pages), num_pages))
        counts = [-(-(a + c) // page_size) for a, c in zip(active, cached, strict=True)]
        batch = RaggedBatch(active, cached, [1] * 4, [[[next(numbers) for _ in range(count)] for count in counts]])
        backend = NativeAttention(spec, NativeKernels(CPU, dtype), page_size)
        assert torch.equal(run(backend, batch, *tensors, page_size=page_size), expected)


@pytest.mark.parametrize("page_size", [64, 96, 16])
def test_pages_of_another_size_are_refused(page_size):
    """The kernel would read and write beyond their end."""
    backend, batch = native(spec(), torch.float32), RaggedBatch([1], [0], [1], [[[0]]])
    for ask in (lambda: backend.page_shapes(4, page_size), lambda: backend.plan(batch, page_size, CPU, 0)):
        with pytest.raises(UnsupportedAttentionError, match=f"found: {page_size}; allowed: {PAGE_SIZE}"):
            ask()


def test_values_do_not_reach_beyond_the_keys_that_they_lie_in():
    with pytest.raises(UnsupportedModelError, match=r"found: value_dim 96; allowed: at most the head_dim, 64"):
        spec(head_dim=64, value_dim=96, values_in_keys=True)


def test_of_the_keys_of_a_prompt_nothing_is_made_apart():
    """Whatever the number of heads; only a decode's are computed in pieces, each with a result of its own."""
    backend = native(LATENT["latent_128"], torch.bfloat16)
    prompt, decode = (RaggedBatch([rows], [4096], [1], [[[*range(130)]]]) for rows in (64, 1))
    (_, partials, _), (_, of_decode, _) = (backend.plan(batch, PAGE_SIZE, CPU, 0).arrays for batch in (prompt, decode))
    assert partials.nbytes == 0
    assert of_decode.nbytes > 0


@pytest.mark.parametrize("name", ["grouped", "window", "softcap", "sinks_window", "chunk", "latent"])
@pytest.mark.parametrize("backend", [*BACKENDS, lambda spec, dtype: ReferenceAttention(spec)])
def test_a_layer_that_reads_the_keys_of_another(backend, name):
    """It writes nothing, and sees what the other one has written in the same step."""
    own = {**SPECS, **FURTHER}[name]
    batch, q, k, v, *_ = random_case(own, 0, [1, 40], [0, 0])
    writer, reader = backend(own, q.dtype), backend(replace(own, kv_layer=0), q.dtype)
    key_shape, value_shape = writer.page_shapes(NUM_PAGES, PAGE_SIZE)
    key_pages = torch.zeros(key_shape)
    pages = key_pages, key_pages if value_shape is None else torch.zeros(value_shape)
    v = None if own.values_in_keys else v
    plan, sinks = writer.plan(batch, PAGE_SIZE, CPU, 0), sinks_of(own, q.dtype)
    expected = writer.attend(q, k, v, *pages, plan, sinks=sinks)
    before = [x.clone() for x in pages]
    torch.testing.assert_close(reader.attend(q, None, None, *pages, plan, sinks=sinks), expected)
    assert all(torch.equal(x, y) for x, y in zip(pages, before, strict=True))


def backends_of(*specs, name=AttentionName.auto):
    return AttentionBackends(name, specs, NativeKernels(CPU, torch.float32), PAGE_SIZE)


def test_layers_that_see_as_far_are_a_group():
    window = spec(sliding_window=40)
    specs = [spec(), window, replace(window, softcap=2.0), replace(spec(), scale=1.0), replace(window, kv_layer=1)]
    backends = backends_of(*specs)
    assert [group.layers for group in backends.groups] == [(0, 3), (1, 2)]
    assert [group.sliding_window for group in backends.groups] == [None, 40]
    assert [backends.group_of(i) for i in range(5)] == [0, 1, 1, 0, 1]
    assert backends.page_layers == (0, 1, 2, 3, 1)
    assert [backends[i].spec for i in range(5)] == specs
    same = backends_of(*[spec()] * 5)
    assert same[0] is same[4]


@pytest.mark.parametrize(
    "specs",
    [
        [spec(kv_layer=0)],
        [spec(), spec(kv_layer=1)],
        [spec(), spec(kv_layer=-1)],
        [spec(), spec(kv_layer=0, sliding_window=4)],
        [spec(), spec(kv_layer=0), spec(kv_layer=1)],
    ],
)
def test_keys_that_nobody_like_it_writes(specs):
    with pytest.raises(UnsupportedModelError, match="cannot read the keys of layer"):
        kv_groups(specs)


def test_a_layer_that_the_config_does_not_know():
    with pytest.raises(UnsupportedModelError, match="in a layer of which its config says nothing"):
        backends_of(spec())[1]


def test_one_that_needs_the_slower_backend_does_not_slow_other_groups():
    kernels = NativeKernels(CPU, torch.float32)
    if kernels.obstacle:
        pytest.skip(kernels.obstacle)
    backends = backends_of(spec(), spec(head_dim=40), spec(sliding_window=9))
    assert [backends[i].name for i in range(3)] == ["native", "paged", "native"]
    assert backends.obstacles == [None, f"head_dim is 40, not a multiple of {PANEL} up to 576", None]
