"""The gated delta rule and the norm behind it, in torch and in kernels, against their formulas in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from core.state_steps import assert_chunks_and_batches_are_the_same_bits, assert_is_the_formula, states_of, step_of
from kernels_here import kernels, random

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.recurrence import NO_SLOT, GatedDeltaRule, GatedRMSNorm

DTYPES = [torch.float32, torch.bfloat16]
SIZES = [(2, 4, 16, 32), (1, 1, 5, 7), (3, 3, 8, 64), (2, 2, 12, 100), (1, 3, 33, 17), (1, 2, 64, 132)]
LENGTHS = [(1, 1, 1), (2, 0, 1), (66, 1, 130)]


def rule_of(sizes, dtype=None):
    """Returns the layer; with a dtype, with the kernels."""
    rule = GatedDeltaRule(*sizes)
    rule.A_log.data = random(sizes[1], seed=1).abs()
    rule.dt_bias.data = random(sizes[1], seed=2)
    rule.requires_grad_(requires_grad=False)
    if dtype is not None:
        rule.compute_with(kernels(dtype))
    return rule


def rows_of(rule, num_rows, dtype=torch.float32):
    """Returns qkv, a and b, which lie in rows of one wider tensor, as those of a merged product do."""
    heads = rule.state_shape[0]
    whole = random(num_rows, sum(rule.sizes) + 2 * heads, seed=3).to(dtype)
    return whole.split([sum(rule.sizes), heads, heads], -1)


def by_the_formula(rule, qkv, a, b, state):
    """One request's rows, one after the other: returns their y and the state."""
    heads, key_size, value_size = rule.state_shape
    num_served = heads // (rule.sizes[0] // key_size)
    qkv, a, b, state = (x.double() for x in (qkv, a, b, state))
    q, k, v = qkv.split(rule.sizes, -1)
    q, k = (x.unflatten(-1, (-1, key_size)).repeat_interleave(num_served, 1) for x in (q, k))
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    v, y = v.unflatten(-1, (heads, value_size)), torch.empty(len(qkv), heads, value_size, dtype=torch.float64)
    decay = (-rule.A_log.double().exp() * F.softplus(a + rule.dt_bias.double())).exp()
    for row, (query, key, value, left, strength) in enumerate(zip(q, k, v, decay, b.sigmoid(), strict=True)):
        state = state * left[:, None, None]
        known = torch.einsum("hk,hkv->hv", key, state)
        state = state + torch.einsum("hk,hv->hkv", key, strength[:, None] * (value - known))
        y[row] = torch.einsum("hk,hkv->hv", query, state) / key_size**0.5
    return y.flatten(1), state


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [None, *DTYPES], ids=["torch", "float32", "bfloat16"])
@torch.inference_mode()
def test_it_is_the_formula(dtype, sizes, lengths):
    rule = rule_of(sizes, dtype)
    rows = rows_of(rule, sum(lengths), dtype or torch.float32)
    assert_is_the_formula(rule, rows, lengths, partial(by_the_formula, rule))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@torch.inference_mode()
def test_chunks_and_batches_are_the_same_bits_in_the_kernel(sizes, dtype):
    rule = rule_of(sizes, dtype)
    assert_chunks_and_batches_are_the_same_bits(rule, rows_of(rule, 12, dtype), rows_of(rule, 5, dtype))


@pytest.mark.parametrize("dtype", [None, *DTYPES], ids=["torch", "float32", "bfloat16"])
@pytest.mark.parametrize("lengths", [(1, 1, 1), (2, 5, 1)], ids=str)
@torch.inference_mode()
def test_what_is_no_number_stays_in_its_request(lengths, dtype):
    rule = rule_of(SIZES[0], dtype)
    qkv, a, b = (x.clone() for x in rows_of(rule, sum(lengths), dtype or torch.float32))
    states = states_of(rule)
    states[3] = torch.nan  # somebody's who is gone
    qkv[lengths[0]] = torch.inf
    y = rule(qkv, a, b, states, step_of(lengths, [0, 1, NO_SLOT], [0, 1, 3])).split(lengths)
    assert [part.isfinite().all().item() for part in y] == [True, False, True]
    assert y[1].isnan().all()
    assert states[[0, 3]].isfinite().all()
    assert states[1].isnan().any()


@pytest.mark.parametrize("dtype", [None, torch.float32], ids=["torch", "float32"])
@torch.inference_mode()
def test_rows_that_forget_all_between_rows_that_forget_little(dtype):
    """What is left of a state between two rows does not depend on how much was forgotten before them."""
    rule = rule_of(SIZES[0], dtype)
    qkv, a, b = rows_of(rule, 64)
    a = torch.where(torch.arange(64)[:, None] % 7 == 0, 300.0, -6.0) + a
    y = rule(qkv, a, b, states_of(rule), step_of([64], [0], [0]))
    expected, _ = by_the_formula(rule, qkv, a, b, states_of(rule)[0])
    torch.testing.assert_close(y.double(), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("num_key_heads", [0, 3, 8])
def test_key_heads_that_serve_no_whole_heads(num_key_heads):
    with pytest.raises(UnsupportedModelError, match=f"{num_key_heads} key heads, 4 value heads"):
        GatedDeltaRule(num_key_heads, 4, 16, 16)


@pytest.mark.parametrize("gates", [-1e4, -100.0, 0.0, 100.0, 1e4, 3e38])
@pytest.mark.parametrize("lengths", [(1, 1), (3, 5)], ids=str)
@torch.inference_mode()
def test_gates_of_any_size(lengths, gates):
    """All is forgotten or nothing, all is learned or nothing; in torch as in the kernel."""
    plain, native = rule_of(SIZES[0]), rule_of(SIZES[0], torch.float32)
    qkv, a, b = rows_of(plain, sum(lengths))
    step, found = step_of(lengths, [0, 1], [0, 1]), []
    for rule in (plain, native):
        states = states_of(rule)
        y = rule(qkv, a + gates, b - gates, states, step)
        assert states.isfinite().all()
        found.append((y, states))
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [None, *DTYPES], ids=["torch", "float32", "bfloat16"])
@pytest.mark.parametrize(("heads", "size"), [(1, 1), (3, 7), (2, 16), (4, 33), (2, 128)])
@torch.inference_mode()
def test_the_gated_norm_is_its_formula(heads, size, dtype):
    norm = GatedRMSNorm(size, 0.1)
    norm.weight.data = random(size, seed=1).to(dtype or torch.float32)
    if dtype is not None:
        norm.compute_with(kernels(dtype))
    x, wide = (random(5, width, seed=width).to(norm.weight.dtype) for width in (heads * size, heads * size + 3))
    gate = wide[:, 3:]
    by_head = x.double().unflatten(-1, (heads, size))
    expected = by_head / (by_head.square().mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight.double()
    expected = expected.flatten(-2) * F.silu(gate.double())
    tolerance = {"atol": 1e-2, "rtol": 1e-2} if dtype is torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(norm(x, gate).double(), expected, **tolerance)
