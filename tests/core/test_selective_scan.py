"""The selective scan and the norm behind it, in torch and in kernels, against their formulas in float64."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from core.state_steps import assert_chunks_and_batches_are_the_same_bits, assert_is_the_formula, states_of, step_of
from kernels_here import kernels, random

from pipezoo_core.recurrence import NO_SLOT, RMSNormOfGated, SelectiveScan

DTYPES = [torch.float32, torch.bfloat16]
SIZES = [(4, 16, 2, 12), (1, 7, 1, 5), (3, 64, 3, 8), (2, 100, 1, 17), (6, 17, 2, 33), (2, 132, 2, 64)]
LENGTHS = [(1, 1, 1), (2, 0, 1), (66, 1, 130)]
LIMITS = (0.05, 1.5)


def scan_of(sizes, dtype=None, limits=LIMITS):
    """Returns the layer; with a dtype, with the kernels."""
    scan = SelectiveScan(*sizes, limits)
    scan.A_log.data = random(sizes[0], seed=1)
    scan.dt_bias.data = random(sizes[0], seed=2)
    scan.D.data = random(sizes[0], seed=5)
    scan.requires_grad_(requires_grad=False)
    if dtype is not None:
        scan.compute_with(kernels(dtype))
    return scan


def rows_of(scan, num_rows, dtype=torch.float32):
    """Returns x with B and C, and dt, which lie in rows of one wider tensor, as those of a product do."""
    heads = scan.state_shape[0]
    whole = random(num_rows, sum(scan.sizes) + heads, seed=3).to(dtype)
    return whole.split([sum(scan.sizes), heads], -1)


def by_the_formula(scan, limits, xbc, dt, state):
    """One request's rows, one after the other: returns their y and the state."""
    heads, state_size, head_size = scan.state_shape
    xbc, dt, state = (x.double() for x in (xbc, dt, state))
    x, b, c = xbc.split(scan.sizes, -1)
    x, num_served = x.unflatten(-1, (heads, head_size)), heads // (scan.sizes[1] // state_size)
    b, c = (part.unflatten(-1, (-1, state_size)).repeat_interleave(num_served, 1) for part in (b, c))
    lengths = F.softplus(dt + scan.dt_bias.double()).clamp(*limits)
    left, results = (-scan.A_log.double().exp() * lengths).exp(), []
    for i in range(len(x)):
        state = state * left[i, :, None, None]
        state = state + torch.einsum("hn,hp->hnp", b[i], x[i] * lengths[i, :, None])
        y = torch.einsum("hn,hnp->hp", c[i], state) + scan.D.double()[:, None] * x[i]
        results.append(y.flatten()[None])
    return torch.cat([x.new_empty(0, heads * head_size), *results]), state


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [None, *DTYPES], ids=["torch", "float32", "bfloat16"])
@torch.inference_mode()
def test_it_is_the_formula(dtype, sizes, lengths):
    scan = scan_of(sizes, dtype)
    rows = rows_of(scan, sum(lengths), dtype or torch.float32)
    assert_is_the_formula(scan, rows, lengths, partial(by_the_formula, scan, LIMITS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@torch.inference_mode()
def test_chunks_and_batches_are_the_same_bits_in_the_kernel(sizes, dtype):
    scan = scan_of(sizes, dtype)
    assert_chunks_and_batches_are_the_same_bits(scan, rows_of(scan, 12, dtype), rows_of(scan, 5, dtype))


@pytest.mark.parametrize("dtype", [None, *DTYPES], ids=["torch", "float32", "bfloat16"])
@pytest.mark.parametrize("what", ["x", "dt"])
@pytest.mark.parametrize(("lengths", "row"), [((1, 1, 1), 0), ((2, 5, 1), 0), ((2, 5, 1), 3)], ids=str)
@torch.inference_mode()
def test_what_is_no_number_stays_in_its_request(lengths, row, what, dtype):
    """And shows there from its row on, though a step's length is limited; with kernels not before."""
    scan = scan_of(SIZES[0], dtype)
    xbc, dt = (x.clone() for x in rows_of(scan, sum(lengths), dtype or torch.float32))
    states, first = states_of(scan), lengths[0]
    states[3] = torch.nan  # somebody's who is gone
    (xbc if what == "x" else dt)[first + row] = torch.nan
    y = scan(xbc, dt, states, step_of(lengths, [0, 1, NO_SLOT], [0, 1, 3])).split(lengths)
    assert [part.isfinite().all().item() for part in y] == [True, False, True]
    assert y[1][row:].isnan().all()
    assert dtype is None or y[1][:row].isfinite().all()
    assert states[[0, 3]].isfinite().all()
    assert states[1].isnan().all()


@pytest.mark.parametrize("limits", [(0.0, math.inf), LIMITS], ids=str)
@pytest.mark.parametrize("gate", [-1e4, -100.0, 0.0, 100.0, 1e4])
@pytest.mark.parametrize("lengths", [(1, 1), (3, 70)], ids=str)
@torch.inference_mode()
def test_steps_of_any_length(lengths, gate, limits):
    """All is forgotten or nothing; in torch as in the kernel, and where one row has another length than the rest."""
    plain, native = (scan_of(SIZES[0], None, limits) for _ in range(2))
    for scan in (plain, native):
        scan.A_log.data[:2] = torch.tensor([20.0, 88.5])  # a rate whose product with some lengths is infinite
    native.compute_with(kernels(torch.float32))
    xbc, dt = rows_of(plain, sum(lengths))
    dt = dt.clone()
    dt[::3] += gate
    step, found = step_of(lengths, [0, 1], [0, 1]), []
    for scan in (plain, native):
        states = states_of(scan)
        y = scan(xbc, dt, states, step)
        assert states.isfinite().all()
        found.append((y, states))
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [None, *DTYPES], ids=["torch", "float32", "bfloat16"])
@pytest.mark.parametrize(("groups", "size"), [(1, 1), (3, 7), (2, 16), (1, 33), (2, 128)])
@torch.inference_mode()
def test_the_norm_of_what_a_gate_lets_through_is_its_formula(groups, size, dtype):
    norm = RMSNormOfGated(groups * size, groups, 0.1)
    norm.weight.data = random(groups * size, seed=1).to(dtype or torch.float32)
    if dtype is not None:
        norm.compute_with(kernels(dtype))
    x, wide = (random(5, width, seed=width).to(norm.weight.dtype) for width in (groups * size, groups * size + 3))
    gate = wide[:, 3:]
    gated = (x.double() * F.silu(gate.double())).unflatten(-1, (groups, size))
    expected = (gated / (gated.square().mean(-1, keepdim=True) + 0.1).sqrt()).flatten(-2) * norm.weight.double()
    tolerance = {"atol": 1e-2, "rtol": 1e-2} if dtype is torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(norm(x, gate).double(), expected, **tolerance)
