"""Weights of 8 and 4 bits: the formats, and the kernels against them."""

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize
from gguf.quants import quantize as gguf_quantize
from kernels_here import kernels, random, rounded_rows

from pipezoo_core.config import LinearName, SupportedEncoding
from pipezoo_core.layers import Embedding, Linear, LMHead, quantized, use_linear_backend
from pipezoo_core.layers.native_product import NativeProduct
from pipezoo_core.layers.quantized import GROUP, QuantizedProduct
from pipezoo_core.native import NativeKernels
from pipezoo_core.testing.tensors_alive import PeakOfTensors

CPU = torch.device("cpu")
FORMATS = {8: GGMLQuantizationType.Q8_0, 4: GGMLQuantizationType.Q4_1}


def rounded(weight, bits, dtype=torch.float32):
    """The numbers that a weight of so many bits stands for."""
    return QuantizedProduct(weight, None, bits, dtype).dequantized(slice(None)).to(dtype)


@pytest.mark.parametrize("bits", FORMATS)
def test_as_near_to_the_weight_as_gguf(bits):
    weight = random(40, 96)
    theirs = torch.from_numpy(gguf_dequantize(gguf_quantize(weight.numpy(), FORMATS[bits]), FORMATS[bits]))
    ours = rounded(weight, bits)
    assert (ours - weight).square().mean() <= 1.01 * (theirs - weight).square().mean()


def test_8_bits_are_what_gguf_has_rounded():
    theirs = torch.from_numpy(gguf_dequantize(gguf_quantize(random(40, 96).numpy(), FORMATS[8]), FORMATS[8]))
    torch.testing.assert_close(rounded(theirs, 8), theirs, atol=2e-3, rtol=0)


@pytest.mark.parametrize("scale", [1e-6, 1, 1e4])
def test_4_bits_cut_nothing_off(scale):
    """Rows whose groups are of very different sizes, some above 0 and some below."""
    sizes = torch.logspace(-3, 0, 8)[torch.arange(8 * GROUP) // GROUP] * scale
    weight = (random(20, 8 * GROUP) + random(20, 1, seed=1)) * sizes
    _, scales, scale_step, minima, minimum_step = QuantizedProduct(weight, None, 4, torch.float32)._parts
    scales, minima = scales * scale_step, minima * minimum_step
    error = (rounded(weight, 4) - weight).unflatten(-1, (-1, GROUP)).abs()
    assert (error <= 0.5001 * scales).all()
    groups = weight.unflatten(-1, (-1, GROUP))
    least = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True).clamp(max=0)) / 15
    coarser = (scales.amax(1, keepdim=True) + minima.amin(1, keepdim=True).abs() / 15) / 255
    assert (scales <= least + 1.001 * coarser).all()


@pytest.mark.parametrize("bits", FORMATS)
def test_groups_without_a_range(bits):
    weight = torch.cat((torch.zeros(1, GROUP), torch.full((1, GROUP), 0.5), torch.full((1, GROUP), -3.0)))
    torch.testing.assert_close(rounded(weight, bits), weight, atol=0, rtol=1e-3)


@pytest.mark.parametrize("bits", FORMATS)
@pytest.mark.parametrize("place", [0, 9, 17, 31, 40, 63])
@pytest.mark.parametrize("product", [NativeProduct, QuantizedProduct])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_no_number_shows(bits, place, product, value):
    weight = random(33, 64)
    weight[7, place] = value
    if product is NativeProduct:
        product = NativeProduct(kernels(torch.float32), weight, None, bits)
    else:
        product = QuantizedProduct(weight, None, bits, torch.float32)
    assert (~product(random(3, 64, seed=1)).isfinite()).any(0).nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("bits", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 32), (33, 64), (64, 288)])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 32, 41])  # a tile has 8, and more than 4 tiles are prepared in parts
def test_native_product(bits, dtype, size, rows):
    x, weight, bias = random(rows, size[1], seed=1).to(dtype), random(*size).to(dtype), random(size[0]).to(dtype)
    x[0, :GROUP] = 0
    product = NativeProduct(kernels(dtype), weight, bias, bits)
    exact = rounded(weight, bits, torch.float64)
    expected = rounded_rows(x) @ exact.T + bias.double()
    step = 2**-8 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(product(x).double(), expected, atol=1e-4, rtol=step)
    indices = torch.arange(rows) % size[0]
    torch.testing.assert_close(product.rows(indices), exact[indices].to(dtype), atol=1e-6, rtol=step)


@pytest.mark.parametrize("bits", [*FORMATS, None])
def test_rows_of_several_blocks(bits):
    """Of rows that are wide and many, some are prepared when the products of those before are done."""
    x, weight = random(900, 4096, seed=1), random(40, 4096)
    product = NativeProduct(kernels(torch.float32), weight, None, bits)
    one_by_one = torch.cat([product(row) for row in x.split(1)])
    torch.testing.assert_close(product(x), one_by_one, atol=1e-4, rtol=1e-5)


def test_a_weight_is_packed_in_any_order_in_memory():
    weight = random(320, 512)
    product = NativeProduct(kernels(torch.float32), weight.T.contiguous().T, None)
    assert torch.equal(product.rows(torch.arange(320)), weight)


@pytest.mark.parametrize("bits", FORMATS)
def test_native_product_does_not_depend_on_other_rows(bits):
    x, product = random(40, 64), NativeProduct(kernels(torch.float32), random(96, 64), None, bits)
    assert torch.equal(product(x)[17:18], product(x[17:18]))


@pytest.mark.parametrize("bits", FORMATS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_stays_so_and_alone(bits, value):
    x, product = random(3, 64), NativeProduct(kernels(torch.float32), random(32, 64), None, bits)
    expected = product(x)
    x[1, 40] = value
    assert not product(x)[1].isfinite().any()
    assert torch.equal(product(x)[::2], expected[::2])


@pytest.mark.parametrize("bits", FORMATS)
def test_plain_product(bits):
    x, weight = random(3, 64, seed=1), random(48, 64)
    product = QuantizedProduct(weight, None, bits, torch.float32)
    exact = rounded(weight, bits)
    torch.testing.assert_close(product(x), x @ exact.T)
    assert torch.equal(product.rows(torch.tensor([5, 0])), exact[[5, 0]])


@pytest.mark.parametrize("bits", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_plain_product_in_parts(bits, dtype, monkeypatch):
    """Equal to the product with the whole weight, which is never there as a whole."""
    at_once = 640
    monkeypatch.setattr(quantized, "DEQUANTIZED_AT_ONCE", at_once)
    x, weight, bias = random(2, 3, 64, seed=1).to(dtype), random(83, 64), random(83, seed=2)
    product = QuantizedProduct(weight, bias, bits, dtype)
    exact = rounded(weight, bits, dtype)
    with PeakOfTensors() as alive:
        found = product(x)
    tolerance = 1e-5 if dtype is torch.float32 else 0.1
    torch.testing.assert_close(found, x @ exact.T + bias.to(dtype), atol=tolerance, rtol=tolerance)
    assert found.shape == (2, 3, 83)
    assert at_once * dtype.itemsize < alive.peak <= at_once * (4 + dtype.itemsize) + found.nbytes


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = Embedding(50, 64)
        self.inner, self.odd = Linear(64, 48), Linear(48, 64)
        self.head = LMHead.sharing(self.embedding)
        self.embedding.weight.data, self.inner.weight.data = random(50, 64), random(48, 64)
        self.odd.weight.data = random(64, 48)

    def forward(self, tokens):
        return self.head(self.odd(self.inner(self.embedding(tokens))))


@pytest.mark.parametrize("backend", [LinearName.torch, LinearName.native])
@pytest.mark.parametrize("encoding", [SupportedEncoding.int8, SupportedEncoding.int4])
@torch.inference_mode()
def test_which_layers_are_quantized(backend, encoding):
    """All that divide into groups; a head to 8 bits, and the embedding that shares its weight with it."""
    model, expected = Model(), Model()
    bits = {SupportedEncoding.int8: 8, SupportedEncoding.int4: 4}[encoding]
    shared = rounded(expected.head.weight, 8)
    expected.head.weight.data = expected.embedding.weight.data = shared
    expected.inner.weight.data = rounded(expected.inner.weight, bits)
    native = kernels(torch.float32) if backend is LinearName.native else NativeKernels(CPU, torch.float32)
    use_linear_backend(backend, model, CPU, encoding, native)
    tokens = torch.arange(6)
    torch.testing.assert_close(model.embedding(tokens), expected.embedding(tokens))
    found, wanted = model(tokens), expected(tokens)
    assert (found - wanted).norm() < (0.02 if backend is LinearName.native else 1e-6) * wanted.norm()
    left = [name for name, _ in model.named_parameters()]
    assert left == (["odd.weight"] if backend is LinearName.torch else [])
