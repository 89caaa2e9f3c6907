"""What a module gives a layer by mistake is an error that says so, never numbers that were read for others."""

import importlib
import re
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kernels_here import needs_kernels

from pipezoo_core.attention import Attention, AttentionBackends, AttentionSpec, NativeAttention
from pipezoo_core.config import AttentionName
from pipezoo_core.errors import InsufficientMemoryError, TensorMismatchError
from pipezoo_core.kv_cache import KVCacheInputs, RaggedBatch
from pipezoo_core.layers import Heads, LatentHeads, RMSNorm, RotaryEmbedding, Router, Routing
from pipezoo_core.layers.native_experts import NativeExperts
from pipezoo_core.layers.native_product import NativeProduct
from pipezoo_core.native import Activation, Form, NativeKernels, variants
from pipezoo_core.recurrence import StateStep

CPU = torch.device("cpu")
F32, BF16 = torch.float32, torch.bfloat16


def other(dtype):
    return BF16 if dtype is F32 else F32


def mistakes(dtype):
    """name -> a call that no kernel may compute, and one that it may."""
    k = NativeKernels(CPU, dtype)
    weight = torch.ones(64, dtype=dtype)
    product = {bits: NativeProduct(k, torch.ones(32, 64), torch.ones(32), bits) for bits in (None, 8, 4)}
    gated = NativeProduct(k, torch.ones(64, 64), None, None, Form.gated)
    frequencies = torch.ones(16)
    heads = LatentHeads(Heads(3, 1, 64), 64, 32, 32)
    heads.compute_with(k)
    of_heads = heads.queries
    router = Router(64, Routing(num_experts=4, top_k=2))
    router.compute_with(k)
    downs = [NativeProduct(k, torch.ones(64, 32), None)] * 4
    experts = NativeExperts([gated] * 4, downs, activation=Activation.silu, first=0, top_k=2)
    rows, indices, weights = torch.ones(3, 64, dtype=dtype), torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2)

    stored = torch.zeros(32, 2 * 176, dtype=torch.uint8)

    def x(*shape, dtype=dtype, device=CPU):
        return torch.ones(shape, dtype=dtype, device=device)

    calls = {}
    for name, call in {
        "rms_norm": lambda x: k.rms_norm(x, weight, 1e-6),
        "gated": gated,
        **{f"linear {bits}": product[bits] for bits in product},
    }.items():
        calls |= {
            f"{name}: wider": (call, x(2, 128)),
            f"{name}: narrower": (call, x(2, 32)),
            f"{name}: dtype": (call, x(2, 64, dtype=other(dtype))),
            f"{name}: float64": (call, x(2, 64, dtype=torch.float64)),
            f"{name}: device": (call, x(2, 64, device="meta")),
        }
    calls |= {
        "rms_norm: weight": (lambda w: k.rms_norm(x(2, 64), w, 1e-6), x(64, dtype=other(dtype))),
        "gated: odd": (lambda x: k.gated(x, Activation.silu), x(2, 63)),
        "gated: dtype": (lambda x: k.gated(x, Activation.silu), x(2, 64, dtype=other(dtype))),
        "rows: int32": (product[None].rows, torch.ones(3, dtype=torch.int32)),
        "rows: two dimensions": (product[8].rows, torch.ones(3, 1, dtype=torch.int64)),
        "angles: positions": (lambda p: k.rotary_angles(p, frequencies, 1.0), torch.ones(3)),
        "angles: frequencies": (lambda f: k.rotary_angles(torch.arange(3), f, 1.0), frequencies.double()),
        "heads: narrower": (of_heads, x(2, 3, 32)),
        "heads: dtype": (of_heads, x(2, 3, 64, dtype=other(dtype))),
        "heads: more": (of_heads, x(2, 4, 64)),
        "heads: two dimensions": (of_heads, x(3, 64)),
        "route: wider": (router, x(2, 128)),
        "route: dtype": (router, x(2, 64, dtype=other(dtype))),
        "experts: narrower": (lambda x: experts(x, indices, weights), x(3, 32)),
        "experts: int32": (lambda i: experts(rows, i, weights), indices.int()),
        "experts: more choices": (lambda i: experts(rows, i, weights), torch.zeros(3, 4, dtype=torch.int64)),
        "experts: rows": (lambda i: experts(rows, i, weights), indices[:2]),
        "experts: weights": (lambda w: experts(rows, indices, w), weights.double()),
        "pack: odd": (k.pack, x(32, 63)),
        "pack: no groups": (lambda w: k.pack(w, 8), x(32, 48)),
        "pack: dtype": (k.pack, x(32, 64, dtype=other(dtype))),
        "pack: float16": (lambda w: k.pack(w, 4), x(32, 64, dtype=torch.float16)),
        "pack: a row of half the blocks": (lambda rows: k.pack_stored("Q4_K", rows), stored[:, :72]),
        "pack: a row of more than blocks": (lambda rows: k.pack_stored("Q4_0", rows), stored),
        "pack: rows in three dimensions": (lambda rows: k.pack_stored("Q4_K", rows), stored[None]),
        "pack: no bytes": (lambda rows: k.pack_stored("Q4_K", rows), stored.to(torch.int8)),
        "pack: no whole gates of blocks": (lambda rows: k.pack_stored("Q4_K", rows, Form.gated), stored[:24]),
        "pack: no whole gates": (lambda w: k.pack(w, None, Form.gated), x(40, 64)),
    }
    return calls | mistakes_of_states(k, x)


def mistakes_of_states(k, x):
    step = StateStep.of(*(torch.tensor(numbers) for numbers in ([0, 1, 3], [0, -1], [0, 1])))
    inputs, states, of_heads = torch.zeros(2, 3, 96), torch.zeros(2, 3, 16, 32), torch.ones(3, 3)
    right = {"taps": x(4, 96), "gate": x(3, 3), "decay": torch.ones(3), "weight": x(32), "normed": x(3, 64)}

    def convolved(rows, taps=right["taps"], inputs=inputs, bias=None):
        return k.short_convolution(rows, taps, bias, inputs, step, is_activated=True)

    def learned(rows, gate=right["gate"], decay=right["decay"], states=states, num_key_heads=1):
        return k.gated_delta_rule(rows, (right["gate"], gate), (right["decay"], decay), states, step, num_key_heads)

    def scanned(rows, dt=right["gate"], of_heads=of_heads, states=states, num_groups=1):
        return k.selective_scan(rows, dt, of_heads, (0.0, 1.0), states, step, num_groups)

    def normed(gate, weight=right["weight"]):
        return k.gated_rms_norm(right["normed"], weight, gate, 1e-6)

    def normed_in_groups(weight, num_groups=2):
        return k.gated_rms_norm(right["normed"], weight, right["normed"], 1e-6, num_groups)

    rows, wide, gate = x(3, 96), x(3, 128), x(3, 64)
    for found in (convolved(rows), learned(wide), scanned(wide), normed(gate), normed_in_groups(x(64))):
        assert found.isfinite().all()
    return {
        "convolution: wider": (convolved, x(3, 128)),
        "convolution: rows": (convolved, x(4, 96)),
        "convolution: dtype": (convolved, x(3, 96, dtype=other(k.dtype))),
        "convolution: taps": (lambda taps: convolved(rows, taps=taps), x(4, 96, dtype=other(k.dtype))),
        "convolution: fewer inputs": (lambda inputs: convolved(rows, inputs=inputs), inputs[:, :2]),
        "convolution: inputs": (lambda inputs: convolved(rows, inputs=inputs), inputs.double()),
        "convolution: turned": (lambda inputs: convolved(rows, inputs=inputs), torch.zeros(2, 96, 3)),
        "convolution: three dimensions": (convolved, x(3, 1, 96)),
        "convolution: a bias of two": (lambda bias: convolved(rows, bias=bias), x(1, 96)),
        "convolution: a wider bias": (lambda bias: convolved(rows, bias=bias), x(97)),
        "rule: narrower": (learned, x(3, 96)),
        "rule: three dimensions": (learned, x(3, 1, 128)),
        "rule: gates of three dimensions": (lambda gate: learned(wide, gate=gate), x(3, 1, 3)),
        "rule: no key heads": (lambda states: learned(x(3, 96), states=states, num_key_heads=0), states),
        "rule: key heads for half of the heads": (
            lambda states: learned(x(3, 160), states=states, num_key_heads=2),
            states,
        ),
        "rule: more key heads than heads": (lambda states: learned(x(3, 288), states=states, num_key_heads=6), states),
        "rule: rows": (learned, x(2, 128)),
        "rule: a gate of fewer rows": (lambda gate: learned(wide, gate=gate), x(2, 3)),
        "rule: a gate of more heads": (lambda gate: learned(wide, gate=gate), x(3, 4)),
        "rule: decay": (lambda decay: learned(wide, decay=decay), torch.ones(3).double()),
        "rule: states": (lambda states: learned(wide, states=states), states.bfloat16()),
        "rule: states that are not contiguous": (
            lambda states: learned(wide, states=states),
            states.transpose(2, 3).contiguous().mT,
        ),
        "scan: narrower": (scanned, x(3, 96)),
        "scan: rows": (scanned, x(2, 128)),
        "scan: dtype": (scanned, x(3, 128, dtype=other(k.dtype))),
        "scan: other groups": (lambda rows: scanned(rows, num_groups=3), wide),
        "scan: no groups": (lambda states: scanned(wide, states=states, num_groups=0), states),
        "scan: groups of unequal heads": (lambda states: scanned(x(3, 160), states=states, num_groups=2), states),
        "scan: dt of fewer rows": (lambda dt: scanned(wide, dt=dt), x(2, 3)),
        "scan: dt of more heads": (lambda dt: scanned(wide, dt=dt), x(3, 4)),
        "scan: parameters": (lambda of_heads: scanned(wide, of_heads=of_heads), torch.ones(2, 3)),
        "scan: parameters' dtype": (lambda of_heads: scanned(wide, of_heads=of_heads), torch.ones(3, 3).double()),
        "scan: states": (lambda states: scanned(wide, states=states), states.bfloat16()),
        "norm of gated: a weight of one group": (normed_in_groups, x(32)),
        "norm of gated: no groups": (lambda w: k.gated_rms_norm(right["normed"], w, gate, 1e-6, 0), x(3, 64)[0]),
        "norm of gated: unequal groups": (lambda weight: normed_in_groups(weight, 3), x(64)),
        "norm: no weight": (lambda weight: normed(gate, weight=weight), x(0)),
        "norm: no whole heads": (lambda weight: normed(gate, weight=weight), x(24)),
        "norm: a gate of fewer rows": (normed, x(2, 64)),
        "norm: a wider gate": (normed, x(3, 96)),
    }


@needs_kernels
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_what_kernels_cannot_read(dtype):
    for name, (call, x) in mistakes(dtype).items():
        with pytest.raises(
            TensorMismatchError, match=rf"found: {re.escape(str(x.dtype))} {re.escape(str(list(x.shape)))}"
        ):
            pytest.fail(f"{name}: {call(x)}")


@pytest.mark.parametrize("name", ["row_offsets", "read_slots", "write_slots"])
@pytest.mark.parametrize("mistake", ["int32", "longer", "two dimensions", "gaps", "elsewhere"])
def test_what_no_step_of_states_is_made_of(name, mistake):
    """Kernels are told where the tensors are, and see no more of them."""
    tensors = {"row_offsets": torch.tensor([0, 1, 3]), "read_slots": torch.tensor([0, -1]),
               "write_slots": torch.tensor([0, 1])}  # fmt: skip
    assert StateStep.of(**tensors).num_rows == 3
    x = tensors[name]
    tensors[name] = {"int32": x.int(), "longer": torch.cat((x, x)), "two dimensions": x[:, None],
                     "gaps": x.repeat_interleave(2)[::2], "elsewhere": x.to("meta")}[mistake]  # fmt: skip
    with pytest.raises(TensorMismatchError, match="a step of layers with a state"):
        StateStep.of(**tensors)


@needs_kernels
def test_a_norm_of_a_part_of_a_dimension():
    """A plain RMSNorm knows the whole width; a rank that divides it has a part of the numbers."""
    norm = RMSNorm(64, 1e-6)
    norm.compute_with(NativeKernels(CPU, F32))
    with pytest.raises(TensorMismatchError, match=r"'rms_norm'.*\[2, 32\].*\[..., 64\]"):
        norm(torch.ones(2, 32))


@needs_kernels
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_rows_of_wider_tensors_are_read_where_they_lie(dtype):
    """Queries of a merged product, and each head of them: what a norm of queries and keys is given."""
    k, weight = NativeKernels(CPU, dtype), torch.rand(32).to(dtype)
    whole = torch.randn(5, 256).to(dtype)
    for x in (
        whole[:, 64:96],
        whole[:, :128].unflatten(1, (4, 32)),
        whole.unflatten(1, (8, 32))[:, 3:5],
        whole[::2, 32:64],
        whole[None, :, 64:96],
        whole[None, None, :, :128].unflatten(-1, (4, 32)),
        whole[None, :, :128].unflatten(-1, (4, 32)).expand(2, 5, 4, 32),
        whole.unflatten(1, (8, 32)).transpose(0, 1),
        whole.unflatten(1, (8, 32))[:, ::2],
        whole.view(5, 32, 8).transpose(1, 2),
        whole[:1, :32].expand(5, 32),
    ):
        found = k.rms_norm(x, weight, 1e-6)
        assert found.is_contiguous()
        assert found.shape == x.shape
        assert torch.equal(found, k.rms_norm(x.contiguous(), weight, 1e-6))


SPEC = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=32, scale=0.2, has_sinks=True)


def inputs_of(backends):
    batch = RaggedBatch([2, 1], [0, 0], [2, 1], [[[0], [1]]])
    pages = torch.zeros(backends.page_shapes(0, 2, 32)[0])
    return KVCacheInputs(
        positions=torch.tensor(batch.positions),
        context_lengths=torch.tensor(batch.context_lengths),
        input_row_offsets=torch.tensor(batch.row_offsets),
        cache_lengths=torch.tensor(batch.cache_lengths),
        batch=batch,
        key_pages=(pages,),
        value_pages=(pages.clone(),),
        plans=backends.plan(batch, 32, CPU),
    )


@pytest.mark.parametrize("backend", ["reference", "paged", pytest.param("native", marks=needs_kernels)])
@pytest.mark.parametrize("name", ["q", "k", "v", "cos", "sin", "sinks"])
@pytest.mark.parametrize("mistake", ["rows", "fewer rows", "wider", "narrower", "dtype"])
def test_what_no_attention_computes(backend, name, mistake):
    """One key/value head would be taken for all by torch, half a head for a head; nobody would notice."""
    backends = AttentionBackends(AttentionName(backend), [SPEC], NativeKernels(CPU, F32), 32)
    attention, kv = Attention(0, backends), inputs_of(backends)
    tensors = {"q": torch.ones(3, 128), "k": torch.ones(3, 64), "v": torch.ones(3, 64)}
    tensors |= {"cos": torch.ones(3, 32), "sin": torch.zeros(3, 32), "sinks": torch.ones(4)}

    def attend():
        return attention(*(tensors[n] for n in "qkv"), kv, (tensors["cos"], tensors["sin"]), tensors["sinks"])

    assert attend().shape == (3, 128)
    *rows, width = tensors[name].shape
    shape = {"rows": (4, width), "fewer rows": (2, width), "wider": (*rows, 2 * width), "narrower": (*rows, width // 2)}
    tensors[name] = torch.ones(shape.get(mistake, (*rows, width)), dtype=BF16 if mistake == "dtype" else F32)
    named = "sin" if (name, mistake) == ("cos", "narrower") else name  # a part of each head may be rotated
    said = f"layer 0.*attend's {named}" if backend == "native" else f"layer 0 .*{named!r}"
    with pytest.raises(TensorMismatchError, match=said):
        attend()


@needs_kernels
@pytest.mark.parametrize("name", ["k", "v", "sinks"])
def test_what_the_kernel_of_attention_has_no_use_for_or_cannot_do_without(name):
    """The second layer reads the keys of the first one, and has no sinks."""
    specs = [SPEC, replace(SPEC, kv_layer=0, has_sinks=False)]
    backends = AttentionBackends(AttentionName.native, specs, NativeKernels(CPU, F32), 32)
    kv, given = inputs_of(backends), {"k": torch.ones(3, 64), "v": torch.ones(3, 64), "sinks": torch.ones(4)}
    pages = (kv.key_pages[0], kv.value_pages[0], kv.plans[0])
    for layer, tensors in enumerate((given | {name: None}, dict.fromkeys(given) | {name: given[name]})):
        with pytest.raises(TensorMismatchError, match="other tensors than its layer has"):
            backends[layer].attend(torch.ones(3, 128), tensors["k"], tensors["v"], *pages, sinks=tensors["sinks"])


@pytest.mark.parametrize("missing", ["k", "v", "sinks"])
def test_what_attention_cannot_do_without(missing):
    backends = AttentionBackends(AttentionName.paged, [SPEC], NativeKernels(CPU, F32), 32)
    given = {"q": torch.ones(3, 128), "k": torch.ones(3, 64), "v": torch.ones(3, 64), "sinks": torch.ones(4)}
    given[missing] = None
    with pytest.raises(TensorMismatchError, match=f"layer 0 .*{missing!r}") as caught:
        Attention(0, backends)(given["q"], given["k"], given["v"], inputs_of(backends), sinks=given["sinks"])
    assert caught.value.found == "none"


def test_sinks_that_the_config_does_not_know():
    """They would be left out of the sum in silence."""
    backends = AttentionBackends(AttentionName.paged, [replace(SPEC, has_sinks=False)], NativeKernels(CPU, F32), 32)
    q, kv = torch.ones(3, 128), inputs_of(backends)
    with pytest.raises(TensorMismatchError, match=r"layer 0 .*'sinks'"):
        Attention(0, backends)(q, q[:, :64], q[:, :64], kv, sinks=torch.ones(4))


def test_half_a_pair_is_not_rotated():
    backends = AttentionBackends(AttentionName.paged, [SPEC], NativeKernels(CPU, F32), 32)
    q, odd = torch.ones(3, 128), torch.ones(3, 31)
    with pytest.raises(TensorMismatchError, match=r"layer 0 .*'cos'"):
        Attention(0, backends)(q, q[:, :64], q[:, :64], inputs_of(backends), (odd, odd), torch.ones(4))


@needs_kernels
@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_token_that_is_none_shows(bits, dtype):
    """Its own row has no numbers; the others have theirs."""
    product = NativeProduct(NativeKernels(CPU, dtype), torch.randn(37, 96), None, bits)
    tokens = torch.tensor([0, 37, 36, -1, 2**62, -(2**63), 63, 5])
    rows = product.rows(tokens)
    assert rows.isnan().all(-1).tolist() == [False, True, False, True, True, True, True, False]
    assert torch.equal(rows[[0, 2, 7]], product.rows(torch.tensor([0, 36, 5])))


@needs_kernels
def test_angles_of_any_positions():
    rotary = RotaryEmbedding({"rope_type": "default", "rope_theta": 1e4}, 32, 64)
    positions = torch.arange(20)[::3]
    expected = rotary(positions, positions, F32)
    rotary.compute_with(NativeKernels(CPU, F32))
    for found, right in zip(rotary(positions, positions, F32), expected, strict=True):
        torch.testing.assert_close(found, right)


@needs_kernels
@pytest.mark.parametrize("found", [{}, {"interface": 1}, {"interface": variants.INTERFACE + 1}])
def test_kernels_of_another_version(found, monkeypatch):
    """Their arguments and the layout of what they read may be others: they are not called."""
    assert importlib.import_module(variants.MODULE).interface == variants.INTERFACE
    monkeypatch.setitem(sys.modules, variants.MODULE, types.SimpleNamespace(**found))
    obstacle = NativeKernels(CPU, F32).obstacle
    assert f"interface {found.get('interface')}, not {variants.INTERFACE}" in obstacle
    assert NativeAttention.why_not(SPEC, NativeKernels(CPU, F32), 64) == obstacle


@needs_kernels
def test_kernels_that_were_built_without_those_of_this_cpu(monkeypatch):
    monkeypatch.setitem(sys.modules, variants.MODULE, None)
    assert f"has no {variants.VARIANT} kernels" in NativeKernels(CPU, F32).obstacle


SHORT_OF_MEMORY = """
import resource, torch
from pipezoo_core.attention import AttentionSpec, NativeAttention
from pipezoo_core.errors import InsufficientMemoryError
from pipezoo_core.kv_cache import RaggedBatch
from pipezoo_core.native import NativeKernels
CPU = torch.device("cpu")
torch.set_num_threads(2)
kernels = NativeKernels(CPU, torch.float32)
weight, few = torch.zeros(2, 1 << 22), torch.ones(8, 32)
kernels.pack(few, 4)
spec = AttentionSpec(num_heads=1, num_kv_heads=1, head_dim=32, scale=1.0)
attention = NativeAttention(spec, kernels, 32)
attention._max_queries = 1 << 17  # so that what an item works with is large
q, pages = torch.zeros(1 << 17, 32), torch.zeros(1 << 12, 1, 1024)
layer = attention._layer.ctypes.data
plan = attention.plan(RaggedBatch([1 << 17], [0], [0], [[list(range(1 << 12))]]), 32, CPU, 0)
out = q[:2].clone()
packed = kernels._allocate(1 << 27)
resource.setrlimit(resource.RLIMIT_AS, (int(open("/proc/self/statm").read().split()[0]) * 4096 + (8 << 20),) * 2)
def attend(step):
    kernels._empty = lambda shape, dtype: q
    kernels.attend((q, q, q), None, (pages, pages), (step, layer), None, attention._sizes, 1 << 17)
kernels._allocate = lambda size: packed
for call in (lambda: kernels.pack(weight, 4), lambda: attend(plan.address)):
    try:
        call()
    except InsufficientMemoryError as error:
        assert isinstance(error, MemoryError)
        print("short", flush=True)
kernels.pack(few, 4)
print("goes on")
"""


@needs_kernels
@pytest.mark.slow
def test_memory_that_is_short_is_an_error():
    """In whichever thread; the process and the kernels go on."""
    done = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split("\n")) == (0, ["short", "short", "goes on", ""]), done.stderr


def test_a_replayed_step_that_is_short_of_memory(monkeypatch):
    if NativeKernels(CPU, F32).obstacle:
        pytest.skip("no kernels here")
    k = NativeKernels(CPU, F32)

    def short(*arguments):
        raise MemoryError

    monkeypatch.setattr(k, "_native", types.SimpleNamespace(replay=short))
    with pytest.raises(InsufficientMemoryError):
        k.replay(0, 0)


def test_core_asks_for_the_kernels_it_was_written_for():
    """The extra of pipezoo-core names one version, and the sources' number is the one that core expects."""
    root = Path(__file__).parents[2]
    version = re.search(r'^version = "(.+)"', (root / "kernels/pyproject.toml").read_text(), re.M)[1]
    assert f'kernels = ["pipezoo-kernels=={version}"]' in (root / "core/pyproject.toml").read_text()
    number = re.search(r"kInterface = (\d+);", (root / "kernels/native/module.cpp").read_text())[1]
    assert int(number) == variants.INTERFACE


@needs_kernels
@pytest.mark.parametrize("shape", [(0, 64), (64, 0)])
def test_a_weight_without_numbers_is_not_packed(shape):
    with pytest.raises(TensorMismatchError, match="the packing of a weight"):
        NativeKernels(CPU, F32).pack(torch.empty(shape))
