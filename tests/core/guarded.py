"""Kernels over tensors between pages that may not be touched: a read or write beyond them ends the process.

`python guarded.py attention`, `layers`, `experts` or `recurrence`; exits 0 where all results are right.
"""

import ctypes
import mmap
import sys

import torch
import torch.nn.functional as F

from pipezoo_core.attention import AttentionSpec, NativeAttention
from pipezoo_core.kv_cache import RaggedBatch
from pipezoo_core.layers import Router, Routing, apply_rotary
from pipezoo_core.layers.native_experts import NativeExperts
from pipezoo_core.layers.native_product import NativeProduct
from pipezoo_core.layers.quantized import QuantizedProduct
from pipezoo_core.native import GATE, Activation, Form, NativeKernels, Packing
from pipezoo_core.recurrence import (
    NO_SLOT,
    GatedDeltaRule,
    GatedRMSNorm,
    RMSNormOfGated,
    SelectiveScan,
    ShortConvolution,
    StateStep,
)

CPU = torch.device("cpu")
MAX_PAGE_SIZE = 4096
LIBC = ctypes.CDLL(None, use_errno=True)
AREAS = []


def guarded(x, at_end=True):
    """Returns a copy that ends (or begins) where memory that may not be touched begins (or ends)."""
    inner = -(-x.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    area = mmap.mmap(-1, inner + 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for address in (start, start + mmap.PAGESIZE + inner):
        assert LIBC.mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, 0) == 0
    AREAS.append(area)
    offset = mmap.PAGESIZE + (inner - x.nbytes if at_end else 0)
    return torch.frombuffer(area, dtype=x.dtype, count=x.numel(), offset=offset).view(x.shape).copy_(x)


def whole(spec, q, keys, values, cached):
    """One request's attention by its formula, in float64: q [T, N, D], keys and values [S, K, D] to [T, N · D]."""
    keys, values = (x.double().repeat_interleave(spec.num_groups, 1) for x in (keys, values))
    scores = torch.einsum("tnd,snd->nts", q.double(), keys) * spec.scale
    distance = (cached + torch.arange(len(q)))[:, None] - torch.arange(len(keys))[None]
    hidden = (distance < 0) | (distance >= (spec.sliding_window or MAX_PAGE_SIZE**2))
    if spec.alibi_slopes is not None:
        scores -= torch.tensor(spec.alibi_slopes, dtype=torch.float64)[:, None, None] * distance
    return torch.einsum("nts,snd->tnd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values).flatten(1)


def rotated(spec, x, *rotation):
    before, rest = x.unflatten(-1, (-1, spec.head_dim)).tensor_split((spec.first_rotated,), dim=-1)
    turned = apply_rotary(rest.flatten(1), *rotation).view_as(rest)
    return torch.cat((before, turned), dim=-1).flatten(1)


def check_attention(page_size, dtype, **changes):
    """Three requests: a decode, a chunk across the end of a page, and a decode that fills a page."""
    spec = AttentionSpec(**{"num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "scale": 0.2, **changes})
    reason = NativeAttention.why_not(spec, NativeKernels(CPU, dtype), page_size)
    if reason is not None:
        return False
    backend = NativeAttention(spec, NativeKernels(CPU, dtype), page_size)
    generator = torch.Generator().manual_seed(page_size)
    active, cached = [1, 70, 1], [page_size + 70, 2 * page_size - 40, page_size - 1]
    counts = [-(-(a + c) // page_size) for a, c in zip(active, cached, strict=True)]
    order = torch.randperm(2 * sum(counts), generator=generator).tolist()
    pages = [[order.pop() for _ in range(count)] for count in counts]
    shape = (2 * sum(counts), spec.num_kv_heads, page_size * spec.head_dim)
    strange = torch.nan if dtype is torch.float32 else 1e30  # in bfloat16 an odd number of values has 0 · the next
    nowhere = torch.full(shape, strange, dtype=dtype)  # what belongs to nobody would show
    key_pages = guarded(nowhere, at_end=page_size % 64 == 0)
    value_pages = key_pages if spec.values_in_keys else guarded(nowhere)

    def random(rows, heads):
        return guarded(torch.randn(rows, heads * spec.head_dim, generator=generator).to(dtype))

    def step(lengths, starts, q, k, v, rotation=None):
        v = None if spec.values_in_keys else v
        plan = backend.plan(RaggedBatch(lengths, starts, lengths, [pages]), page_size, CPU, 0)
        return backend.attend(q, k, v, key_pages, value_pages, plan, rotation)

    past = [random(sum(cached), spec.num_kv_heads) for _ in range(2)]
    step(cached, [0, 0, 0], random(sum(cached), spec.num_heads), *past)
    q, k, v = (random(sum(active), heads) for heads in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads))
    angles = torch.rand(len(q), (spec.head_dim - spec.first_rotated) // 2, generator=generator).repeat(1, 2)
    rotation = tuple(guarded(x.to(dtype)) for x in (angles.cos(), angles.sin()))
    found = step(active, cached, q, k, v, rotation)
    q, k = (rotated(spec, x.float(), *(angle.float() for angle in rotation)) for x in (q, k))
    expected, by_request = [], zip(
        *(x.split(sizes) for x, sizes in ((q, active), (k, active), (v, active), (past[0], cached), (past[1], cached))),
        cached, strict=True,
    )  # fmt: skip
    for q_of, k_of, v_of, past_k, past_v, start in by_request:
        keys, values = torch.cat((past_k.float(), k_of)), torch.cat((past_v, v_of))
        q_of, keys, values = (x.unflatten(-1, (-1, spec.head_dim)) for x in (q_of, keys, values))
        values = keys[..., : spec.value_size] if spec.values_in_keys else values
        expected.append(whole(spec, q_of, keys, values, start))
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype is torch.float32 else {"atol": 2e-2, "rtol": 3e-2}
    torch.testing.assert_close(found.double(), torch.cat(expected), **tolerance)
    AREAS.clear()
    return True


def attention():
    torch.set_num_threads(2)
    sizes = [s for s in range(1, MAX_PAGE_SIZE + 1) if check_attention(s, torch.float32)]
    assert {32, 64, 96, 160, 224, 4064, 4096} <= set(sizes)
    for size in (32, 64, 96, 160, 544):
        assert check_attention(size, torch.bfloat16)
        assert check_attention(size, torch.float32, sliding_window=50)
        assert check_attention(size, torch.float32, alibi_slopes=(0.5, 0.25, 0.1, 0.0))
        assert check_attention(size, torch.bfloat16, num_heads=14, num_kv_heads=2, head_dim=64)
        for dtype in (torch.float32, torch.bfloat16):
            assert check_attention(size, dtype, head_dim=96, value_dim=64, values_in_keys=True, num_kv_heads=1)
    print(f"{len(sizes)} page sizes")


def check_layers(dtype, rows, size):
    kernels, generator = NativeKernels(CPU, dtype), torch.Generator().manual_seed(size)
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype is torch.float32 else {"atol": 5e-2, "rtol": 3e-2}

    def random(*shape):
        return guarded(torch.randn(shape, generator=generator).to(dtype))

    def equal(found, expected):
        torch.testing.assert_close(found.to(dtype), expected.to(dtype), **tolerance)

    x, weight = random(rows, size), random(size)
    equal(kernels.rms_norm(x, weight, 1e-6), F.rms_norm(x.float(), (size,), weight.float(), 1e-6))
    heads = random(rows, 5 * size).unflatten(1, (5, size))[:, 2:]  # the last ones of wider rows
    equal(kernels.rms_norm(heads, weight, 1e-6), F.rms_norm(heads.float(), (size,), weight.float(), 1e-6))
    bias = random(size)
    expected = F.layer_norm(x.float(), (size,), weight.float(), bias.float(), 0.1)
    equal(kernels.layer_norm(x, weight, bias, 0.1, size), expected)
    equal(kernels.layer_norm(x, None, None, 0.1, size), F.layer_norm(x.float(), (size,), eps=0.1))
    gate_up = random(rows, 2 * size)
    equal(kernels.gated(gate_up, Activation.silu), F.silu(gate_up[:, :size].float()) * gate_up[:, size:].float())
    equal(kernels.gated(gate_up, Activation.gelu), F.gelu(gate_up[:, :size].float()) * gate_up[:, size:].float())
    equal(kernels.activate(x, Activation.tanh), torch.tanh(x.float()))
    positions, frequencies = guarded(torch.arange(rows)), guarded(torch.rand(size, generator=generator))
    angles = positions[:, None] * frequencies[None].repeat(1, 2)
    for found, expected in zip(
        kernels.rotary_angles(positions, frequencies, 1.5), (angles.cos(), angles.sin()), strict=True
    ):
        equal(found, 1.5 * expected)
    if size % 2 == 0:
        matrix, x = random(3 * 64, size), random(rows, 3 * (size + 2)).unflatten(1, (3, size + 2))[..., 2:]
        found = kernels.multiply_heads(x, guarded(kernels.pack(matrix)), (64, size))
        equal(found, torch.einsum("tni,noi->tno", x.float(), matrix.float().unflatten(0, (3, 64))))
        x = random(rows, size)
    tokens = guarded(torch.tensor([36, 0, 37, -1, 2**40]))
    for bits in (None, 8, 4):
        if size % (2 if bits is None else 32):
            continue
        matrix, bias = random(37, size), random(37)
        packed = guarded(kernels.pack(matrix, bits))
        numbers = matrix if bits is None else QuantizedProduct(matrix, None, bits, dtype).dequantized(slice(None))
        packing = Packing.of_bits(bits)
        found = kernels.linear(x, packed, bias, (37, size), packing=packing, form=Form.wide)
        error = (found - (x.float() @ numbers.float().T + bias.float())).abs().max()
        assert error < (1e-3 if bits is None else 0.03 * size**0.5), (bits, rows, size, error)
        looked_up = kernels.packed_rows(tokens, packed, (37, size), packing)
        equal(looked_up[:2], numbers[[36, 0]])
        assert looked_up[2:].isnan().all()  # a token that is none shows
    AREAS.clear()


def layers():
    torch.set_num_threads(2)
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (1, 3, 13, 65):
            for size in (1, 7, 16, 32, 34, 96, 130):
                check_layers(dtype, rows, size)


def check_experts(dtype, rows, sizes, num_experts, bits, is_gated):
    """A mixture and its router, of which each tensor is guarded: parameters, packed weights, and what is written."""
    hidden, inner = sizes
    kernels, generator = NativeKernels(CPU, dtype), torch.Generator().manual_seed(hidden)
    kernels._empty = lambda shape, dtype: guarded(torch.empty(shape, dtype=dtype))

    def random(*shape):
        return torch.randn(shape, generator=generator)

    router = Router(hidden, Routing(num_experts=num_experts, top_k=3, num_groups=1), bias=True)
    router.weight.data, router.bias.data = guarded(random(num_experts, hidden)), guarded(random(num_experts))
    x = guarded(random(rows, hidden).to(dtype))
    expected = router(x)
    router.compute_with(kernels)
    indices, weights = router(x)
    assert torch.equal(indices, expected[0])
    torch.testing.assert_close(weights, expected[1], atol=1e-5, rtol=1e-4)
    gate_ups, downs, numbers = [], [], []
    for _ in range(num_experts):
        for products, form, shape in (
            (gate_ups, *((Form.gated, (2 * inner, hidden)) if is_gated else (Form.plain, (inner, hidden)))),
            (downs, Form.plain, (hidden, inner)),
        ):
            weight = random(*shape) / 8
            product = NativeProduct(kernels, weight, random(shape[0]), bits, form)
            product.packed = guarded(product.packed)
            products.append(product)
            rounded = (
                weight.to(dtype)
                if bits is None
                else QuantizedProduct(weight, None, bits, dtype).dequantized(slice(None))
            )
            numbers.append(rounded.float())
    mixture = NativeExperts(gate_ups, downs, activation=Activation.silu, first=0, top_k=3)
    found = mixture(x, guarded(indices), guarded(weights)).float()
    of_gate = [p.bias.float() for p in gate_ups]
    if is_gated:  # in the order of the packed columns: gates and what they let through by turns
        of_gate = [bias.unflatten(0, (-1, 2, GATE)).transpose(0, 1).flatten() for bias in of_gate]
    right = torch.zeros(rows, hidden)
    for row in range(rows):
        for expert, weight in zip(indices[row], weights[row], strict=True):
            first = numbers[2 * expert] @ x[row].float() + of_gate[expert]
            inside = F.silu(first[:inner]) * first[inner:] if is_gated else F.silu(first)
            right[row] += weight * (numbers[2 * expert + 1] @ inside + downs[expert].bias.float())
    assert (found - right).norm() < (1e-4 if dtype is torch.float32 and bits is None else 0.03) * right.norm()
    AREAS.clear()


def experts():
    torch.set_num_threads(2)
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (1, 4, 40):
            for bits, sizes in ((None, (34, 48)), (None, (2, 16)), (8, (32, 64)), (4, (96, 32))):
                for num_experts in (3, 9):
                    check_experts(dtype, rows, sizes, num_experts, bits, is_gated=True)
            for bits, sizes in ((None, (34, 46)), (None, (16, 2)), (8, (64, 32)), (4, (32, 96))):
                check_experts(dtype, rows, sizes, 4, bits, is_gated=False)


def check_recurrence(dtype, sizes, num_taps, at_end):
    """Three requests of the layers with a state, of which each tensor is guarded; in torch what is right."""
    key_heads, heads, key_size, value_size = sizes
    kernels = NativeKernels(CPU, dtype)
    kernels._empty = lambda shape, dtype: guarded(torch.empty(shape, dtype=dtype), at_end)
    generator = torch.Generator().manual_seed(key_size)

    def random(*shape):
        return guarded(torch.randn(shape, generator=generator).to(dtype), at_end)

    width = 2 * key_heads * key_size + heads * value_size
    layers = [
        GatedDeltaRule(*sizes),
        ShortConvolution(width, num_taps, bias=True, activation=True),
        GatedRMSNorm(value_size, 1e-6),
        SelectiveScan(heads, value_size, key_heads, key_size, (0.1, 1.0)),  # its rows are as wide
        RMSNormOfGated(heads * value_size, heads, 1e-6),
    ]
    for layer in layers:
        for name, parameter in layer.named_parameters():
            is_wide = name in getattr(layer, "keeps_float32", ())
            parameter.data = random(*parameter.shape).float() if is_wide else random(*parameter.shape)
            parameter.data = guarded(parameter.data, at_end)
    rule, convolution, norm, scan, norm_of_gated = layers
    step = StateStep.of(*(guarded(torch.tensor(x), at_end) for x in ([0, 1, 7, 9], [3, 1, NO_SLOT], [0, 1, 2])))
    x, gates, gate = random(9, width), [random(9, heads) for _ in range(2)], random(9, heads * value_size)
    inputs, states = (guarded(torch.randn(4, *layer.state_shape, generator=generator), at_end)
                      for layer in (convolution, rule))  # fmt: skip

    def results():
        kept = inputs.clone(), states.clone()
        found = [convolution(x, inputs, step), rule(x, *gates, states, step), norm(gate, gate)]
        found += [inputs.clone(), states.clone()]
        states.copy_(kept[1])
        found += [norm_of_gated(gate, gate), scan(x, gates[0], states, step), states.clone()]
        inputs.copy_(kept[0])
        states.copy_(kept[1])
        return [each.float() for each in found]

    expected = results()
    for layer in layers:
        layer.compute_with(kernels)
    convolution._taps_KD = guarded(convolution._taps_KD, at_end)
    scan._parameters_3H = guarded(scan._parameters_3H, at_end)
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype is torch.float32 else {"atol": 5e-2, "rtol": 3e-2}
    for found, right in zip(results(), expected, strict=True):
        torch.testing.assert_close(found, right, **tolerance)
    AREAS.clear()


@torch.inference_mode()
def recurrence():
    torch.set_num_threads(2)
    for dtype in (torch.float32, torch.bfloat16):
        for at_end in (True, False):
            for key_size in (1, 4, 8, 12, 17, 36):
                for value_size in (1, 4, 7, 8, 20, 33, 68, 100, 132):
                    check_recurrence(dtype, (1, 2, key_size, value_size), 2 + value_size % 3, at_end)


if __name__ == "__main__":
    {"attention": attention, "experts": experts, "layers": layers, "recurrence": recurrence}[sys.argv[1]]()
