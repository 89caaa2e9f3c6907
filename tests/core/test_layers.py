"""The layers between products: plain, and by the kernels; each against a formula in float64 or transformers."""

import math

import pytest
import torch
import torch.nn.functional as F
from kernels_here import needs_kernels
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from pipezoo_core.config import LinearName, SupportedEncoding
from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.layers import (
    ACTIVATIONS,
    MLP,
    Estimable,
    GatedMLP,
    LayerNorm,
    LMHead,
    ParallelLayerNorm,
    ParallelRMSNorm,
    PositionEmbedding,
    RMSNorm,
    VocabParallelEmbedding,
    use_linear_backend,
)
from pipezoo_core.native import Activation, NativeKernels

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
OF_KERNELS = {
    Activation.silu: "silu",
    Activation.gelu: "gelu",
    Activation.gelu_tanh: "gelu_pytorch_tanh",
    Activation.relu: "relu",
    Activation.relu2: "relu2",
    Activation.sigmoid: "sigmoid",
    Activation.tanh: "tanh",
    Activation.quick_gelu: "quick_gelu",
}


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def filled(layer, dtype=torch.float32):
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(random(*parameter.shape, seed=i + 1) / parameter.shape[-1] ** 0.5)
    return layer.to(dtype)


def use_kernels(layer, dtype):
    encoding = SupportedEncoding.float32 if dtype is torch.float32 else SupportedEncoding.bfloat16
    use_linear_backend(LinearName.native, layer, CPU, encoding, NativeKernels(CPU, dtype))


def assert_rounded(found, exact, ulps=1.0):
    """Each number is as near to the exact one as `ulps` of its dtype say: half of one is a rounding."""
    eps = torch.finfo(found.dtype).eps
    allowed = ulps * eps * exact.abs() + 2**-100
    worst = ((found.double() - exact).abs() / allowed).max().item()
    assert worst <= 1, worst


@needs_kernels
@pytest.mark.parametrize("activation", OF_KERNELS)
def test_activations_are_exact(activation):
    """Within a few units of float32's last place of the formula, and rounded once in bfloat16."""
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.logspace(-30, 4, 1000), -torch.logspace(-30, 0, 1000)])
    wide = x.double()
    if activation is Activation.gelu:  # the sum 1 + erf would cancel
        exact = 0.5 * wide * torch.special.erfc(-wide / math.sqrt(2))
    elif activation is Activation.gelu_tanh:
        exact = wide * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
    else:
        exact = ACTIVATIONS[OF_KERNELS[activation]](wide)
    found = NativeKernels(CPU, torch.float32).activate(x, activation)
    # Far below 0 a sigmoid has the error of its exponent: as many last places as that is large.
    exponent = 1.6 * (wide.abs() + 0.05 * wide.abs() ** 3) if activation is Activation.gelu_tanh else 2 * wide.abs()
    assert_rounded(found, exact, ulps=4 + 4 * exponent.clamp(max=300))
    middle = wide.abs() < 2
    assert_rounded(found[middle], exact[middle], ulps=6)
    half = x.bfloat16()
    found = NativeKernels(CPU, torch.bfloat16).activate(half, activation)
    expected = NativeKernels(CPU, torch.float32).activate(half.float(), activation).bfloat16()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-37)  # what is smaller may become 0


@needs_kernels
@pytest.mark.parametrize("activation", OF_KERNELS)
def test_activations_of_what_is_no_number(activation):
    x = torch.tensor([torch.nan, 0.0, 100.0, -100.0, 1e30])
    expected = ACTIVATIONS[OF_KERNELS[activation]](x)
    found = NativeKernels(CPU, torch.float32).activate(x, activation)
    torch.testing.assert_close(found, expected, equal_nan=True, atol=1e-30, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_native", [False, pytest.param(True, marks=needs_kernels)])
@torch.inference_mode()
def test_an_rms_norm_with_an_offset_is_gemmas(dtype, is_native):
    reference = filled(GemmaRMSNorm(48, 1e-6), dtype)
    norm = RMSNorm(48, 1e-6, offset=1.0).to(dtype)
    norm.weight.copy_(reference.weight)
    if is_native:
        norm.compute_with(NativeKernels(CPU, dtype))
    x = random(5, 48, dtype=dtype) * 7
    tolerance = 1e-6 if dtype is torch.float32 else 2**-8  # a sum in another order may round another way
    torch.testing.assert_close(norm(x), reference(x), atol=0, rtol=tolerance)
    exact = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + norm.weight.double())
    assert_rounded(norm(x), exact, ulps=0.51 if dtype is torch.bfloat16 else 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_native", [False, pytest.param(True, marks=needs_kernels)])
@pytest.mark.parametrize(("weight", "bias"), [(True, True), (True, False), (False, False), (False, True)])
@pytest.mark.parametrize("size", [5, 64, 97])
@torch.inference_mode()
def test_layer_norm(dtype, is_native, weight, bias, size):
    norm = filled(LayerNorm(size, 1e-5, weight=weight, bias=bias), dtype)
    if is_native:
        norm.compute_with(NativeKernels(CPU, dtype))
    x = random(7, 3 * size, dtype=dtype)[:, size : 2 * size] + 30  # columns of wider rows, far from 0
    wide = x.double()
    exact = (wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    exact = exact * (norm.weight.double() if weight else 1) + (norm.bias.double() if bias else 0)
    tolerance = 3e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(norm(x).double(), exact, atol=tolerance, rtol=tolerance)


class Ranks(TensorParallelGroup):
    """Two ranks that run one after the other, again and again until each knows what the other one contributes."""

    def __init__(self, rank, sums):
        super().__init__(rank, 2)
        self.sums = sums

    def all_reduce(self, x):
        self.sums[self.rank] = x.clone()
        return sum(self.sums.values())

    def gather(self, x, sizes):
        self.sums[self.rank] = x.clone()
        return torch.cat([self.sums.get(i, x.new_zeros(len(x), size)) for i, size in enumerate(sizes)], dim=-1)


def on_two_ranks(make, full, inputs):
    """Returns what each rank gives, whose layers have their part of a full one's parameters."""
    sums = {}
    layers = []
    for rank in range(2):
        layer = make()
        layer.shard(Ranks(rank, sums))
        for name, parameter in layer.named_parameters():
            whole, shard = dict(full.named_parameters())[name], layer.shards.get(name)
            parts = [whole.narrow(shard.dim, r.start, r.stop - r.start) for r in shard.ranges] if shard else [whole]
            parameter.data = torch.cat(parts, dim=shard.dim if shard else 0).detach().clone()
        layers.append(layer)
    for _ in range(2):
        found = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [ParallelRMSNorm, ParallelLayerNorm])
@torch.inference_mode()
def test_a_norm_that_ranks_divide(dtype, kind):
    options = {"bias": True} if kind is ParallelLayerNorm else {}
    full = filled(kind(96, 1e-5, **options), dtype)
    x = random(4, 96, dtype=dtype)
    found = on_two_ranks(lambda: kind(96, 1e-5, **options).to(dtype), full, x.split([32, 64], dim=-1))
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(torch.cat(found, dim=-1), full(x), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shares", [False, True])
@torch.inference_mode()
def test_a_head_that_ranks_divide(shares):
    options = {"bias": True, "scale": 0.25, "softcap": 3.0}
    head = filled(LMHead(8, 70, **options))
    x = random(3, 8)
    exact = 3 * torch.tanh((x.double() @ head.weight.double().T + head.bias.double()) * 0.25 / 3)
    torch.testing.assert_close(head(x).double(), exact, atol=1e-6, rtol=1e-5)
    if shares:
        embedding = VocabParallelEmbedding(70, 8, scale=3.0)
        embedding.weight = head.weight
        shared = LMHead.sharing(embedding, **options)
        shared.bias = head.bias
        assert torch.equal(shared(x), head(x))
    else:
        found = on_two_ranks(lambda: LMHead(8, 70, **options), head, (x, x))
        torch.testing.assert_close(found[0], head(x))


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_a_scaled_embedding(dtype):
    """The scale is rounded first, as Gemma's: sqrt(2048) is 45.25 in bfloat16."""
    embedding = filled(VocabParallelEmbedding(70, 8, scale=math.sqrt(2048)), dtype)
    tokens = torch.tensor([69, 0, 13, 69])
    expected = embedding.weight[tokens] * torch.tensor(math.sqrt(2048)).to(dtype)
    assert torch.equal(embedding(tokens), expected)
    found = on_two_ranks(
        lambda: VocabParallelEmbedding(70, 8, scale=math.sqrt(2048)).to(dtype), embedding, (tokens, tokens)
    )
    assert torch.equal(found[1], expected)


@pytest.mark.parametrize("offset", [0, 2])
@torch.inference_mode()
def test_learned_positions(offset):
    positions = filled(PositionEmbedding(10, 4, offset))
    assert positions.weight.shape == (10 + offset, 4)
    assert torch.equal(positions(torch.tensor([9, 0])), positions.weight[[9 + offset, offset]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "relu2", "silu", "quick_gelu", "mish"])
@pytest.mark.parametrize("is_native", [False, pytest.param(True, marks=needs_kernels)])
@torch.inference_mode()
def test_a_plain_mlp(dtype, activation, is_native):
    mlp = filled(MLP(24, 56, activation, names=("fc1", "fc2"), bias=True), dtype)
    assert sorted(mlp.state_dict()) == ["fc1.bias", "fc1.weight", "fc2.bias", "fc2.weight"]
    wide = [parameter.double() for parameter in (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)]
    x = random(5, 24, dtype=dtype)
    exact = F.linear(ACT2FN[activation](F.linear(x.double(), *wide[:2])), *wide[2:])
    if is_native:
        use_kernels(mlp, dtype)
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(mlp(x).double(), exact, atol=tolerance, rtol=tolerance)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh", "relu2", "sigmoid"])
@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("rows", [1, 2, 30])
@torch.inference_mode()
def test_gates_of_all_activations_are_one_product(dtype, activation, bits, rows):
    encoding = {None: "float32" if dtype is torch.float32 else "bfloat16", 8: "int8", 4: "int4"}[bits]
    x = random(rows, 64, dtype=dtype)
    fused, apart = (filled(GatedMLP(64, 96, activation, bias=True), dtype) for _ in range(2))
    for mlp, fuse in ((fused, True), (apart, False)):
        use_linear_backend(
            LinearName.native, mlp, CPU, SupportedEncoding(encoding), NativeKernels(CPU, dtype), fuse=fuse
        )
    assert fused._gated is not None
    assert apart._gated is None
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2 if bits is None else 0.1
    torch.testing.assert_close(fused(x), apart(x), atol=tolerance, rtol=tolerance)
    if bits is None:
        plain = filled(GatedMLP(64, 96, activation, bias=True), dtype)
        torch.testing.assert_close(fused(x), plain(x), atol=tolerance, rtol=tolerance)


def test_layers_that_say_what_is_alive():
    assert isinstance(MLP(8, 16, "gelu"), Estimable)
    assert isinstance(GatedMLP(8, 16, "gelu"), Estimable)
    assert not isinstance(nn.Linear(8, 8), Estimable)
