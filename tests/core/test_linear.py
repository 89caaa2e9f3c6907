"""Linear backends against plain torch, and weights that end where they belong."""

import pytest
import torch

from pipezoo_core.config import LinearName, SupportedEncoding
from pipezoo_core.errors import CheckpointMismatchError, InvalidSettingError
from pipezoo_core.layers import (
    MLP,
    Embedding,
    GatedMLP,
    KernelUse,
    Linear,
    LMHead,
    MergedLinear,
    RMSNorm,
    use_linear_backend,
)
from pipezoo_core.layers.linear_backends import _why_not_onednn
from pipezoo_core.layers.native_product import NativeProduct
from pipezoo_core.native import GATE, Activation, Form, NativeKernels, calls
from pipezoo_core.testing.tensors_alive import PeakOfTensors
from pipezoo_core.weights import LazyTensor, load_module

CPU = torch.device("cpu")


def encoding_of(dtype):
    return SupportedEncoding(str(dtype).removeprefix("torch."))


def skip_where_not_usable(backend, dtype):
    onednn = backend is LinearName.onednn
    reason = _why_not_onednn(CPU, encoding_of(dtype)) if onednn else NativeKernels(CPU, dtype).obstacle
    if reason:
        pytest.skip(reason)


def use(backend, module, dtype, **options):
    use_linear_backend(backend, module, CPU, encoding_of(dtype), NativeKernels(CPU, dtype), **options)


class Block(torch.nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.embedding = Embedding(7, 24)
        self.qkv_proj = MergedLinear(24, {"q_proj": 32, "k_proj": 8, "v_proj": 8}, bias=bias)
        self.out = Linear(32, 24, bias=bias)
        self.head = LMHead.sharing(self.embedding)

    def forward(self, tokens):
        q, k, v = self.qkv_proj(self.embedding(tokens))
        return self.head(self.out(q) + torch.cat((k, v, k), dim=-1))


def make_block(bias, dtype):
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        block = Block(bias)
    names = {"embedding.weight": (7, 24), "out.weight": (24, 32)}
    names |= {f"{part}.weight": (size, 24) for part, size in (("q_proj", 32), ("k_proj", 8), ("v_proj", 8))}
    if bias:
        names |= {"out.bias": (24,), "q_proj.bias": (32,), "k_proj.bias": (8,), "v_proj.bias": (8,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
    lazy = {name: LazyTensor(tuple(t.shape), t.dtype, lambda rows, t=t: t[rows]) for name, t in tensors.items()}
    load_module(block, lazy, CPU, dtype)
    return block, tensors, lazy


def test_parts_and_shared_weights_end_where_they_belong():
    block, tensors, lazy = make_block(True, torch.float32)
    merged = torch.cat([tensors[f"{part}.weight"] for part in ("q_proj", "k_proj", "v_proj")])
    assert torch.equal(block.qkv_proj.merged.weight, merged)
    assert block.head.weight is block.embedding.weight
    assert torch.equal(block.head.weight, tensors["embedding.weight"])
    wrong = {**{n: t for n, t in lazy.items() if n != "k_proj.bias"}, "head.weight": lazy["out.weight"]}
    with pytest.raises(CheckpointMismatchError, match=r"missing: k_proj.bias; left over: head.weight"):
        load_module(block, wrong, CPU, torch.float32)


@pytest.mark.parametrize("backend", [LinearName.onednn, LinearName.native])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 12, 33])
@torch.inference_mode()
def test_equals_torch(backend, dtype, bias, rows):
    skip_where_not_usable(backend, dtype)
    plain, fast = make_block(bias, dtype)[0], make_block(bias, dtype)[0]
    use(backend, fast, dtype)
    tokens = torch.arange(rows) % 7
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype is torch.float32 else {"atol": 1.0, "rtol": 0.03}
    torch.testing.assert_close(fast(tokens).to(dtype), plain(tokens), **tolerance)
    left = list(dict(fast.named_parameters()))
    shared = ["embedding.weight"] if backend is LinearName.onednn else []  # its form of a weight has no rows to look up
    assert left == shared, "the plain weights are still there"


def test_plain_torch_changes_nothing():
    block = make_block(False, torch.float32)[0]
    use(LinearName.torch, block, torch.float32)
    assert "out.weight" in dict(block.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 2), (5, 6), (31, 32), (33, 130), (100, 1024)])
@pytest.mark.parametrize("rows", [1, 7, 25, 300])
def test_native_product(dtype, size, rows):
    """Edges of its tiles: 6 or 12 rows, 16 or 32 columns, and two numbers at a time of the inner dimension."""
    skip_where_not_usable(LinearName.native, dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, size[1], generator=generator).to(dtype)
    weight, bias = torch.randn(size, generator=generator).to(dtype), torch.randn(size[0], generator=generator).to(dtype)
    expected = x.double() @ weight.double().T + bias.double()
    found = NativeProduct(NativeKernels(CPU, dtype), weight, bias)(x).double()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5 if dtype is torch.float32 else 2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_product_does_not_depend_on_other_rows(dtype):
    skip_where_not_usable(LinearName.native, dtype)
    x, weight = torch.randn(40, 64).to(dtype), torch.randn(96, 64).to(dtype)
    product = NativeProduct(NativeKernels(CPU, dtype), weight, None)
    assert torch.equal(product(x)[17:18], product(x[17:18]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [8, 32, 48, 576])
@pytest.mark.parametrize("rows", [1, 70])
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_native_norm_and_gate(dtype, size, rows, fuse, bias):
    skip_where_not_usable(LinearName.native, dtype)
    generator = torch.Generator().manual_seed(0)
    norm, mlp = RMSNorm(size, 1e-5), GatedMLP(size, size, "silu", bias=bias)
    for parameter in (*norm.parameters(), *mlp.parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / size**0.5)
    layers = torch.nn.Sequential(norm, mlp).to(dtype)
    x = torch.randn(rows, size, generator=generator).to(dtype)
    expected = layers(x)
    use(LinearName.native, layers, dtype, fuse=fuse)
    assert (mlp._gated is not None) is (fuse and size % GATE == 0)
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype is torch.float32 else {"atol": 2e-3, "rtol": 3e-2}
    torch.testing.assert_close(layers(x), expected, **tolerance)
    assert not torch.equal(norm(x * 2), norm(-x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 9])
def test_a_gated_product_of_few_bits(dtype, bits, rows):
    """Is what the products of gate and up give, each by itself: rows are quantized apart, whatever their order."""
    skip_where_not_usable(LinearName.native, dtype)
    kernels, generator = NativeKernels(CPU, dtype), torch.Generator().manual_seed(0)
    x = torch.randn(rows, 64, generator=generator).to(dtype)
    weight, bias = torch.randn(96, 64, generator=generator), torch.randn(96, generator=generator)
    gate = NativeProduct(kernels, weight[:48], bias[:48], bits, Form.wide)(x)
    up = NativeProduct(kernels, weight[48:], bias[48:], bits, Form.wide)(x)
    gated = NativeProduct(kernels, weight, bias, bits, Form.gated)(x)
    torch.testing.assert_close(gated, (torch.nn.functional.silu(gate) * up).to(dtype))


def test_native_gate_of_extreme_numbers():
    skip_where_not_usable(LinearName.native, torch.float32)
    gate_up = torch.tensor([[-1e30, -90.0, 0.0, 90.0, torch.nan, 1.0, 1.0, 1.0, 1.0, 1.0]])
    gated = NativeKernels(CPU, torch.float32).gated(gate_up, Activation.silu)
    torch.testing.assert_close(gated, torch.nn.functional.silu(gate_up[:, :5]), equal_nan=True)


@pytest.mark.parametrize("backend", [LinearName.onednn, LinearName.native])
def test_by_name_where_it_cannot_be_used(backend):
    block = make_block(False, torch.float16)[0]
    with pytest.raises(InvalidSettingError, match=r"not (torch\.)?float16"):
        use(backend, block, torch.float16)
    use(LinearName.auto, block, torch.float16)
    assert "out.weight" in dict(block.named_parameters())


@pytest.mark.parametrize("activation", ["silu", "swish", "gelu", "relu2", "quick_gelu"])
@pytest.mark.parametrize("backend", [LinearName.torch, LinearName.onednn, LinearName.native])
@pytest.mark.parametrize(("hidden", "inner"), [(64, 512), (64, 504), (24, 512)])
@pytest.mark.parametrize("fuse", [True, False])
@torch.inference_mode()
def test_what_is_alive_in_a_gated_mlp(activation, backend, hidden, inner, fuse, monkeypatch):
    """Never more than the plan counts, and with most activations as much."""
    monkeypatch.setattr(calls, "_POOLED", 2**60)  # torch makes all tensors, and they are seen
    skip_where_not_usable(backend, torch.float32)
    mlp, rows = GatedMLP(hidden, inner, activation), 64
    counted = (
        sum(mlp.alive(KernelUse(is_native=backend is LinearName.native, fuse=fuse, fuse_experts=True, itemsize=4)))
        * rows
        * 4
    )
    use(backend, mlp, torch.float32, fuse=fuse)
    x = torch.randn(rows, hidden)
    with PeakOfTensors() as alive:
        mlp(x)
    assert 0.7 * counted <= alive.peak <= counted


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu2", "mish"])
@pytest.mark.parametrize("backend", [LinearName.torch, LinearName.onednn, LinearName.native])
@pytest.mark.parametrize(("hidden", "inner"), [(64, 512), (512, 64)])
@torch.inference_mode()
def test_what_is_alive_in_a_plain_mlp(activation, backend, hidden, inner, monkeypatch):
    monkeypatch.setattr(calls, "_POOLED", 2**60)
    skip_where_not_usable(backend, torch.float32)
    mlp, rows = MLP(hidden, inner, activation), 64
    is_native = backend is LinearName.native
    counted = sum(mlp.alive(KernelUse(is_native=is_native, fuse=True, fuse_experts=True, itemsize=4))) * rows * 4
    use(backend, mlp, torch.float32)
    x = torch.randn(rows, hidden)
    with PeakOfTensors() as alive:
        mlp(x)
    assert (0.95 if is_native and activation != "mish" else 0.6) * counted <= alive.peak <= counted
