"""Weights that keep a GGUF file's numbers: the packed forms and their products, against the `gguf` package."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from gguf_blocks import K_TYPES, as_quantized, quantized
from kernels_here import kernels, random, rounded_rows

from pipezoo_core.config import LinearName, SupportedEncoding, WeightsFormat
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.layers import ColumnParallelLinear, GatedMLP, KernelUse, use_linear_backend
from pipezoo_core.layers.native_product import NativeProduct
from pipezoo_core.layers.quantized import GROUP
from pipezoo_core.layers.stored import StoredType, StoredWeight
from pipezoo_core.layers.stored_product import StoredProduct
from pipezoo_core.native import Form, calls
from pipezoo_core.testing.tensors_alive import PeakOfTensors
from pipezoo_core.weights import LazyTensor, Weights, keep_outline, load_module, resolve_encoding
from pipezoo_core.weights.base import StoredTensor

CPU = torch.device("cpu")
TYPES = (Type.Q4_0, Type.Q4_1, Type.Q8_0, Type.MXFP4, *K_TYPES)
HALVES = {Type.Q4_1: (0, 2), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,)}
"""Where the float16 numbers of a block begin; in other types but MXFP4 at 0."""


def random_weight(type_, num_rows, size, seed=0):
    """Blocks of any bits, whose scales are numbers of an ordinary size."""
    block, num_bytes = GGML_QUANT_SIZES[type_]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (num_rows, size // block, num_bytes), dtype=np.uint8)
    if type_ is Type.MXFP4:
        blocks[..., 0] = rng.integers(115, 123, blocks.shape[:2])
        return of_bytes(blocks.reshape(num_rows, -1), type_)
    for at in HALVES.get(type_, (0,)):
        scales = rng.uniform(-0.02, 0.02, (*blocks.shape[:2], 1)).astype(np.float16)
        blocks[..., at : at + 2] = scales.view(np.uint8)
    return of_bytes(blocks.reshape(num_rows, -1), type_)


def of_bytes(rows, type_):
    numbers = StoredType(
        type_.name, *GGML_QUANT_SIZES[type_], lambda blocks: torch.from_numpy(dequantize(blocks.numpy(), type_))
    )
    return StoredWeight(numbers, torch.from_numpy(rows))


def lazy(weight):
    """A tensor of a file."""
    stored = StoredTensor(weight.type, LazyTensor(weight.rows.shape, torch.uint8, weight.rows.__getitem__))
    return LazyTensor(weight.shape, torch.float32, lambda rows: dequantized(weight)[rows], stored=stored)


def dequantized(weight):
    return weight.type.dequantize(weight.rows)


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("size", [(1, 256), (33, 512), (70, 1280)])
def test_rows_are_those_of_the_file_bit_for_bit(type_, size):
    weight = random_weight(type_, *size)
    product = NativeProduct(kernels(), weight, None)
    indices = torch.arange(size[0]).flip(0)
    assert torch.equal(product.rows(indices), dequantized(weight)[indices])
    assert product.packed.nbytes == weight.packed_size


@pytest.mark.matrix
@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(33, 256), (64, 768)])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 41])
def test_native_product(type_, dtype, size, rows):
    weight, bias = random_weight(type_, *size), random(size[0], seed=2).to(dtype)
    x = random(rows, size[1], seed=1).to(dtype)
    x[0, :GROUP] = 0
    found = NativeProduct(kernels(dtype), weight, bias)(x)
    expected = rounded_rows(x) @ dequantized(weight).double().T + bias.double()
    scale = expected.abs().max().item()
    step = 2**-8 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), expected, atol=1e-5 * scale, rtol=step)


@pytest.mark.parametrize("type_", TYPES)
def test_the_extremes_of_every_number_are_multiplied_rightly(type_):
    """The greatest numbers of rows and of weights, where sums of pairs in 16 bits are at their limits."""
    _, num_bytes = GGML_QUANT_SIZES[type_]
    for fill in (0, 255, 128):
        weight = random_weight(type_, 32, 256)
        keep = weight.rows.clone().view(32, -1, num_bytes)
        keep[:] = fill
        if type_ is Type.MXFP4:
            keep[..., 0] = 127  # 1, and the numbers' greatest is 6
            keep[..., 1:] = {0: 0x77, 255: 0xFF, 128: 0x7F}[fill]
            check_extremes(of_bytes(keep.view(32, -1).numpy(), type_))
            continue
        for at in HALVES.get(type_, (0,)):
            keep[..., at : at + 2] = torch.tensor([0, 60], dtype=torch.uint8)  # 1 in float16
        check_extremes(of_bytes(keep.view(32, -1).numpy(), type_))


def check_extremes(weight):
    x = torch.ones(3, 256) * torch.tensor([[1.0], [-1.0], [0.5]])
    expected = rounded_rows(x) @ dequantized(weight).double().T
    torch.testing.assert_close(NativeProduct(kernels(), weight, None)(x).double(), expected, atol=1e-2, rtol=1e-5)


def test_mxfp4_has_every_number_and_every_scale():
    """But those whose numbers are too large for float32, and that of NaN."""
    scales, codes = np.arange(253, dtype=np.uint8), np.tile(np.arange(16, dtype=np.uint8) * 17, (253, 1))
    weight = of_bytes(np.concatenate([scales[:, None], codes], axis=1), Type.MXFP4)
    assert torch.equal(NativeProduct(kernels(), weight, None).rows(torch.arange(253)), dequantized(weight))


def test_a_block_of_mxfp4_that_is_no_number_shows():
    rows = np.full((32, 17), 0x22, dtype=np.uint8)
    rows[5, 0] = 255
    found = NativeProduct(kernels(), of_bytes(rows, Type.MXFP4), None)(random(2, 32))
    assert (~found.isfinite()).any(0).nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("rows", [1, 13])
def test_a_gated_product_is_of_both_halves(type_, rows):
    weight, bias = random_weight(type_, 192, 256), random(192)
    gate, up = (
        NativeProduct(kernels(), StoredWeight(weight.type, weight.rows[part]), bias[part], form=Form.wide)
        for part in (slice(0, 96), slice(96, 192))
    )
    x = random(rows, 256, seed=1)
    found = NativeProduct(kernels(), weight, bias, form=Form.gated)(x)
    torch.testing.assert_close(found, torch.nn.functional.silu(gate(x)) * up(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("type_", TYPES)
def test_a_product_does_not_depend_on_other_rows(type_):
    x, product = random(40, 256), NativeProduct(kernels(), random_weight(type_, 96, 256), None)
    assert torch.equal(product(x)[17:18], product(x[17:18]))


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_stays_so_and_alone(type_, value):
    x, product = random(3, 256), NativeProduct(kernels(), random_weight(type_, 32, 256), None)
    expected = product(x)
    x[1, 40] = value
    assert not product(x)[1].isfinite().any()
    assert torch.equal(product(x)[::2], expected[::2])


@pytest.mark.parametrize("type_", TYPES)
def test_without_kernels(type_):
    weight, bias, x = random_weight(type_, 48, 256), random(48), random(2, 3, 256)
    product = StoredProduct(weight, bias, torch.float32)
    torch.testing.assert_close(product(x), x @ dequantized(weight).T + bias, atol=1e-3, rtol=1e-4)
    assert torch.equal(product.rows(torch.tensor([5, 0])), dequantized(weight)[[5, 0]])


@pytest.mark.parametrize("activation", ["silu", "gelu", "mish"])
@pytest.mark.parametrize("linear", [LinearName.torch, LinearName.native])
@torch.inference_mode()
def test_what_is_alive_where_gate_and_up_are_of_different_types(activation, linear, monkeypatch):
    """Never more than the plan counts, but for what plain torch dequantizes at once."""
    monkeypatch.setattr(calls, "_POOLED", 2**60)  # torch makes all tensors, and they are seen
    mlp, rows, hidden, inner = GatedMLP(256, 512, activation), 2048, 256, 512
    mlp.down_proj.keep([random_weight(Type.Q4_K, hidden, inner)])
    mlp.gate_up_proj.merged.keep([random_weight(type_, inner, hidden) for type_ in (Type.Q4_K, Type.Q6_K)])
    is_native = linear is LinearName.native
    counted = sum(mlp.alive(KernelUse(is_native=is_native, fuse=True, fuse_experts=True, itemsize=4))) * rows * 4
    use_linear_backend(linear, mlp, CPU, SupportedEncoding.packed, kernels())
    x = random(rows, hidden)
    with PeakOfTensors() as alive:
        mlp(x)
    assert 0.7 * counted <= alive.peak <= counted + (0 if is_native else 2 * inner * hidden * 4)


def test_one_tensor_of_a_layer_in_parts():
    with torch.device("meta"):
        outline, layer = (torch.nn.Sequential(ColumnParallelLinear(64, [64, 32, 32])) for _ in range(2))
    weight = random_weight(Type.Q4_0, 128, 64)
    keep_outline(outline, {"0.weight": weight.type})
    load_module(layer, {"0.weight": lazy(weight)}, CPU, torch.float32, keep_stored=True)
    assert [each.shape for each in outline[0].stored] == [(128, 64)]
    assert torch.equal(layer[0].stored[0].rows, weight.rows)


def encoding(requested, *supported, device=CPU):
    weights = Weights(WeightsFormat.gguf, {"a": lazy(random_weight(Type.Q4_0, 32, 64))}, is_quantized=True)
    return resolve_encoding(requested, weights, device, supported, by_kernels=True, packs=True)


def test_packed_is_for_plugins_that_support_it():
    kernels(torch.bfloat16)
    bfloat16, float32, packed = SupportedEncoding.bfloat16, SupportedEncoding.float32, SupportedEncoding.packed
    assert encoding("auto", bfloat16, float32) is bfloat16
    assert encoding("auto", packed, float32) is encoding("packed", packed, float32) is packed
    assert encoding("auto", packed, float32, device=torch.device("cuda")) is float32
    with pytest.raises(InvalidSettingError, match=r"the dtype is not supported.*found: packed.*auto, bfloat16"):
        encoding("packed", bfloat16, float32)
    with pytest.raises(InvalidSettingError, match="no weight can stay as it is"):
        encoding("packed", bfloat16, packed, device=torch.device("cuda"))


@pytest.mark.parametrize("type_", K_TYPES)
def test_the_writer_of_these_tests_is_as_near_as_its_bits_allow(type_):
    values = random(20, 512).numpy()
    error = np.square(as_quantized(values, type_) - values).mean() ** 0.5
    bits = {Type.Q4_K: 4, Type.Q5_K: 5, Type.Q6_K: 6}[type_]
    assert error < 1.5 * 2.0**-bits
    assert quantized(values, type_).shape == (20, 2 * GGML_QUANT_SIZES[type_][1])
