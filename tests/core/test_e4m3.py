"""Weights of 8-bit floats: the kernels against torch's own conversion and products in float64."""

import pytest
import torch
from kernels_here import kernels, random

from pipezoo_core.layers.native_product import NativeProduct
from pipezoo_core.layers.stored import StoredWeight
from pipezoo_core.native import Form
from pipezoo_core.weights.quantized.e4m3 import e4m3_type

CPU = torch.device("cpu")
E4M3 = torch.float8_e4m3fn
NAN = (0x7F, 0xFF)


def weight_of(numbers, scales):
    """Rows of blocks, of e4m3 [O, I] and scales, one for each row or one for 128 columns: [O, 1] or [O, I / 128]."""
    num_columns = numbers.shape[1]
    type_ = e4m3_type(num_columns, num_columns // scales.shape[1])
    blocks = numbers.view(torch.uint8).unflatten(1, (-1, type_.block))
    of_blocks = scales.float().repeat_interleave(blocks.shape[1] // scales.shape[1], 1).unsqueeze(-1)
    rows = torch.cat([of_blocks.contiguous().view(torch.uint8), blocks], -1).flatten(1)
    return StoredWeight(type_, rows)


def random_weight(num_rows, size, seed=0):
    numbers = (random(num_rows, size, seed=seed) * 2 ** (3 * random(num_rows, size, seed=seed + 1))).to(E4M3)
    numbers.view(torch.uint8)[numbers.isnan()] = 0
    scales = random(num_rows, 1 if size % 128 else size // 128, seed=seed + 2) * 0.01
    return weight_of(numbers, scales), numbers.double() * scales.double().repeat_interleave(size // scales.shape[1], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_numbers(dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    codes[[*NAN]] = 0
    weight = weight_of(codes.expand(40, 256).contiguous().view(E4M3), torch.ones(40, 2))
    product, expected = NativeProduct(kernels(dtype), weight, None), codes.view(E4M3).float()
    assert torch.equal(product.rows(torch.arange(40)).float(), expected.expand(40, 256))
    assert torch.equal(product(torch.eye(256).to(dtype)).float(), expected[:, None].expand(256, 40))
    assert torch.equal(weight.type.dequantize(weight.rows), expected.expand(40, 256))


@pytest.mark.parametrize("nan", NAN)
def test_a_weight_that_is_no_number_shows(nan):
    numbers = random(33, 256).to(E4M3)
    numbers.view(torch.uint8)[7, 130] = nan
    weight = weight_of(numbers, torch.ones(33, 2))
    found = NativeProduct(kernels(), weight, None)(random(3, 256, seed=1))
    assert found.isnan().any(0).nonzero().flatten().tolist() == [7]
    assert weight.type.dequantize(weight.rows).isnan().nonzero().tolist() == [[7, 130]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 32), (33, 160), (64, 192), (70, 640)])
@pytest.mark.parametrize("rows", [1, 4, 5, 12, 61])
def test_native_product(dtype, size, rows):
    (weight, exact), bias = random_weight(*size), random(size[0], seed=5).to(dtype)
    x = random(rows, size[1], seed=6).to(dtype)
    product = NativeProduct(kernels(dtype), weight, bias)
    expected = x.double() @ exact.T + bias.double()
    step = 2**-8 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(product(x).double(), expected, atol=1e-6 * expected.abs().max().item(), rtol=step)
    assert torch.equal(product.rows(torch.arange(size[0])), exact.float().to(dtype))
    assert product.packed.nbytes == weight.packed_size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [256, 160])
def test_a_product_does_not_depend_on_other_rows(dtype, size):
    x, product = random(40, size).to(dtype), NativeProduct(kernels(dtype), random_weight(96, size)[0], None)
    one_by_one = torch.cat([product(row) for row in x.split(1)])
    assert torch.equal(product(x), one_by_one)
    assert torch.equal(product(x[:3]), one_by_one[:3])


@pytest.mark.parametrize("rows", [1, 13])
def test_a_gated_product_is_of_both_halves(rows):
    weight, bias = random_weight(192, 256)[0], random(192)
    gate, up = (
        NativeProduct(kernels(), StoredWeight(weight.type, weight.rows[part]), bias[part], form=Form.wide)
        for part in (slice(0, 96), slice(96, 192))
    )
    x = random(rows, 256, seed=1)
    found = NativeProduct(kernels(), weight, bias, form=Form.gated)(x)
    torch.testing.assert_close(found, torch.nn.functional.silu(gate(x)) * up(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_stays_so_and_alone(value):
    x, product = random(3, 256), NativeProduct(kernels(), random_weight(32, 256)[0], None)
    expected = product(x)
    x[1, 40] = value
    assert not product(x)[1].isfinite().any()
    assert torch.equal(product(x)[::2], expected[::2])
