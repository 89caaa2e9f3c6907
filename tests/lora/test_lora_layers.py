"""What an adapter adds to a layer, however that is computed: against one row at a time, from the formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipezoo_core.config import LinearName, SupportedEncoding
from pipezoo_core.errors import TensorMismatchError
from pipezoo_core.layers import Heads, LatentHeads, Linear, LMHead, MergedLinear, use_linear_backend
from pipezoo_core.lora import LoRABatch, LoRALayer, adaptable_layers, group_rows, numbers_while_added
from pipezoo_core.lora.latent_heads import adapt_latent_heads
from pipezoo_core.native import NativeKernels
from pipezoo_core.testing.tensors_alive import PeakOfTensors

CPU = torch.device("cpu")


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 4)), min_size=1, max_size=12))
def test_rows_are_grouped_by_adapter(requests):
    ids, lengths = zip(*requests, strict=True)
    offsets = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    groups = group_rows(ids, [10 + i for i in ids], offsets, CPU)
    found = torch.full((offsets[-1],), -1)
    for group in groups:
        assert (found[group.rows] == -1).all()
        assert group.rank == 10 + group.slot
        found[group.rows] = group.slot
    assert found.tolist() == [i for i, length in requests for _ in range(length)]
    assert len({group.slot for group in groups}) == len(groups)


def test_rows_in_a_row_are_a_slice():
    groups = group_rows([1, 1, -1, 0, 0], [2, 2, 0, 3, 3], [0, 2, 3, 5, 6, 10], CPU)
    assert [(group.slot, group.rows) for group in groups] == [(1, slice(0, 3)), (0, slice(5, 10))]


@pytest.mark.parametrize(
    ("linear", "encoding"),
    [(LinearName.onednn, SupportedEncoding.float32)]
    + [
        (linear, SupportedEncoding(e))
        for linear in (LinearName.torch, LinearName.native)
        for e in ("float32", "bfloat16", "int8")
    ],
)
@torch.inference_mode()
def test_a_merged_layer_adds_to_the_columns_of_its_parts(linear, encoding):
    """Three slots: q and v, only k, and q with a smaller rank; rows of each, and rows without an adapter, mixed."""
    dtype = torch.float32 if encoding is SupportedEncoding.float32 else torch.bfloat16
    kernels = NativeKernels(CPU, dtype)
    if linear is LinearName.native and kernels.obstacle:
        pytest.skip(kernels.obstacle)
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    merged = MergedLinear(64, {"q": 32, "k": 16, "v": 16})
    merged.merged.weight = torch.nn.Parameter(random(64, 64).to(dtype))
    use_linear_backend(linear, merged, CPU, encoding, kernels)
    x = random(9, 64).to(dtype)
    before = torch.cat(merged(x), -1)

    batch = LoRABatch(num_rows=9)
    size = merged.merged.in_features
    layer = LoRALayer(batch, size, merged.parts, num_slots=3, max_rank=5, device=CPU, dtype=dtype)
    merged.merged.add_to_product(layer.add)
    adapters = {0: {"q": 4, "v": 4}, 1: {"k": 5}, 2: {"q": 2}}
    delta = {slot: torch.zeros(64, 64) for slot in adapters}
    columns = {"q": slice(0, 32), "k": slice(32, 48), "v": slice(48, 64)}
    for slot, parts in adapters.items():
        layer.fill(slot, "k", random(3, 64), random(16, 3))  # another adapter, which gave way
        layer.empty(slot)
        for name, rank in parts.items():
            a, b = random(rank, 64), random(merged.parts[name], rank)
            layer.fill(slot, name, a, b)
            delta[slot][columns[name]] = b @ a
    assert torch.equal(torch.cat(merged(x), -1), before)

    ids, lengths = [0, -1, 2, 0, 1, 1], [1, 2, 1, 3, 1, 1]
    offsets = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    batch.groups = group_rows(ids, [4, 0, 2, 4, 5, 5], offsets, CPU)
    found = torch.cat(merged(x), -1)
    slots = [slot for slot, length in zip(ids, lengths, strict=True) for _ in range(length)]
    for row, slot in enumerate(slots):
        if slot == -1:
            assert torch.equal(found[row], before[row])
            continue
        added = delta[slot] @ x[row].float()
        error = (found[row].float() - before[row].float() - added).abs().max()
        assert error < (1e-4 if dtype is torch.float32 else 0.02 * added.abs().max() + 0.3)
        untouched = added == 0
        assert untouched.any()
        assert torch.equal(found[row][untouched], before[row][untouched])


def test_every_linear_layer_but_the_head_takes_adapters():
    block = torch.nn.ModuleDict({"attn": torch.nn.ModuleDict({"qkv": MergedLinear(8, {"q": 8, "k": 4}, bias=True)})})
    block["out"] = Linear(8, 6)
    block["head"] = LMHead(8, 99)
    block["norm"] = torch.nn.LayerNorm(8)
    assert [{name: target.shape for name, target in targets.items()} for _, targets in adaptable_layers(block)] == [
        {"attn.q": (8, 8), "attn.k": (4, 8)},
        {"out": (6, 8)},
    ]


@pytest.mark.parametrize("num_rows", [1, 2, 8, 10])
def test_a_layer_that_computes_other_rows_than_the_step(num_rows):
    """An expert sees some of a step's rows: whose these are it does not say."""
    layer, batch = Linear(8, 6), LoRABatch(num_rows=9)
    torch.nn.init.ones_(layer.weight)
    slots = {"num_slots": 1, "max_rank": 2, "device": CPU, "dtype": torch.float32}
    adapted = LoRALayer(batch, layer.in_features, {"experts.0": 6}, **slots)
    layer.add_to_product(adapted.add)
    adapted.fill(0, "experts.0", torch.ones(2, 8), torch.ones(6, 2))
    with torch.inference_mode():
        layer(torch.ones(num_rows, 8))  # a step without adapters
        batch.groups = group_rows([0, -1], [2, 0], [0, 4, 9], CPU)
        layer(torch.ones(9, 8))
        with pytest.raises(TensorMismatchError, match=rf"experts\.0 .*{num_rows} rows.*all 9 rows"):
            layer(torch.ones(num_rows, 8))


def products_of(module, x):
    """The calls of a layer, each with its input."""
    if isinstance(module, LatentHeads):
        keys, _ = module.sizes
        return [
            (module.queries, x[..., :keys].contiguous()),
            (module.values, x[..., : module.in_features].contiguous()),
        ]
    return [(module, x[:, 0, : module.in_features].contiguous())]


@pytest.mark.parametrize("max_rank", [4, 64])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Linear(32, 96),
        lambda: Linear(96, 32),
        lambda: MergedLinear(64, {"gate": 64, "up": 64}).merged,
        lambda: LatentHeads(Heads(6, 1, 64), 32, 32, 96),
        lambda: LatentHeads(Heads(6, 1, 64), 32, 96, 16),
    ],
)
@torch.inference_mode()
def test_what_is_alive_while_adapters_are_added(make, max_rank):
    """Of an adapter that nearly all rows have, whose rows are one piece or two."""
    module, count = make(), 400
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    sizes = {"0": 64, "1": 64} if module.out_features == 128 else {"0": module.out_features}
    batch = LoRABatch(num_rows=count)
    layer = LoRALayer(batch, module.in_features, sizes, num_slots=1, max_rank=max_rank, device=CPU, dtype=torch.float32)
    layer.fill(0, "0", torch.randn(max_rank, module.in_features), torch.randn(sizes["0"], max_rank))
    adapt_latent_heads(module, layer) if isinstance(module, LatentHeads) else module.add_to_product(layer.add)
    peaks = []
    for ids, offsets in (([0, -1], [0, count - 1, count]), ([0, -1, 0], [0, count // 2, count // 2 + 1, count])):
        batch.groups = group_rows(ids, [max_rank] * len(ids), offsets, CPU)
        for call, x in products_of(module, torch.randn(count, 6, 96)):
            with PeakOfTensors() as alive:
                y = call(x)
            peaks.append((alive.peak - y.nbytes) / (count * 4))
    assert max(peaks) == pytest.approx(numbers_while_added(module, len(sizes), max_rank), rel=0.1)
