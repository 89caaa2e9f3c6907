"""The matrices of latent attention, in torch and in kernels, against keys and values that are made of latents."""

import pytest
import torch

from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.layers import Heads, LatentHeads
from pipezoo_core.native import NativeKernels

pytestmark = pytest.mark.matrix

CPU = torch.device("cpu")
NUM_HEADS, LATENT = 3, 96


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(dtype, key_dim=34, value_dim=64, num_heads=NUM_HEADS, latent=LATENT):
    layer = LatentHeads(Heads(num_heads, 1, key_dim), key_dim, value_dim, latent)
    layer.weight = torch.nn.Parameter(random(*layer.full_shape).to(dtype), requires_grad=False)
    return layer


def with_kernels(layer, dtype):
    kernels = NativeKernels(CPU, dtype)
    if kernels.obstacle:
        pytest.skip(kernels.obstacle)
    layer.compute_with(kernels)
    return layer


@pytest.mark.parametrize("rows", [1, 2, 6, 12, 13, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_native", [False, True])
def test_scores_and_values_are_those_of_keys_and_values(is_native, dtype, rows):
    """q·(K c) for each latent c, and V of a sum of latents, in float64."""
    layer = make(dtype)
    keys, values = layer.weight.double().unflatten(0, (NUM_HEADS, -1)).split([34, 64], dim=1)
    if is_native:
        layer = with_kernels(layer, dtype)
        assert not hasattr(layer, "weight")
    q = random(rows, NUM_HEADS, 50).to(dtype)[..., :34]  # the first ones of wider heads
    sums, latents = random(rows, NUM_HEADS, LATENT, seed=1).to(dtype), random(5, LATENT, seed=2).double()
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype is torch.float32 else {"atol": 1.0, "rtol": 1e-2}
    found = layer.queries(q).double() @ latents.T
    expected = torch.einsum("tnk,nkl,sl->tns", q.double(), keys, latents)
    torch.testing.assert_close(found, expected, **tolerance)
    found, expected = layer.values(sums).double(), torch.einsum("tnl,nvl->tnv", sums.double(), values)
    if dtype is torch.bfloat16:
        tolerance["atol"] = 0.1
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize(("key_dim", "value_dim", "latent"), [(33, 64, 96), (34, 40, 96), (34, 64, 100)])
def test_sizes_that_the_kernels_do_not_take(key_dim, value_dim, latent):
    plain = make(torch.float32, key_dim, value_dim, latent=latent)
    layer, q = (
        with_kernels(make(torch.float32, key_dim, value_dim, latent=latent), torch.float32),
        random(2, 3, key_dim),
    )
    assert layer.weight.shape == layer.full_shape
    assert torch.equal(layer.queries(q), plain.queries(q))


def test_ranks_divide_the_heads():
    whole, q = make(torch.float32, num_heads=4), random(2, 4, 34)
    parts = []
    for rank in range(2):
        part = make(torch.float32, num_heads=4)
        part.shard(TensorParallelGroup(rank, 2))
        (rows,) = part.shards["weight"].ranges
        part.weight.copy_(whole.weight[rows])
        assert part.out_features == len(part.weight)
        parts.append(part.queries(q[:, 2 * rank : 2 * rank + 2]))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole.queries(q))
