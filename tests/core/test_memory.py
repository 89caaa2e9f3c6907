"""The memory plan: what control groups leave, what it refuses before it loads, and what loading takes."""

import json
import re

import pytest
import torch
from fallback.served import make_reference
from fallback.tiny_configs import TYPES
from gguf_files import TOKENS
from safetensors.torch import save_file
from tiny_models import make_llama
from torch import nn

from pipezoo import registry
from pipezoo.discovery.published import PUBLISHED
from pipezoo_core import memory
from pipezoo_core.control_group import memory_left
from pipezoo_core.decoder.estimates import _pooled
from pipezoo_core.errors import CorruptCheckpointError, InsufficientMemoryError, InsufficientPagesError
from pipezoo_core.layers import Embedding, Linear, LMHead, linear_backends
from pipezoo_core.layers.linear_backends import OneDNNProduct
from pipezoo_core.layers.native_product import NativeProduct
from pipezoo_core.layers.quantized import QuantizedProduct
from pipezoo_core.native import NativeKernels
from pipezoo_core.tokenizer import tokenizer_from_gguf
from pipezoo_core.weights import load_module, open_gguf, open_safetensors

MIB = 2**20
CPU = torch.device("cpu")


class Groups:
    """A process's folder below /proc, and the trees of control groups that it names."""

    def __init__(self, root):
        self.root = root
        self.process = root / "proc"
        self.process.mkdir()
        self.memberships, self.mounts = [], []

    def mount(self, kind, group, *, seen_from="/", controllers="memory"):
        """Puts the process into a group of a mounted tree, of which it sees what lies below `seen_from`."""
        point = self.root / f"{kind}-{controllers}"
        point.mkdir()
        self.memberships.append(f"{len(self.mounts)}:{controllers if kind == 'cgroup' else ''}:{group}")
        self.mounts.append(
            f"31 23 0:{len(self.mounts)} {seen_from} {point} rw shared:1 - {kind} {kind} rw,{controllers}"
        )
        (self.process / "cgroup").write_text("\n".join(self.memberships))
        (self.process / "mountinfo").write_text("\n".join(["23 1 0:1 / / rw - ext4 /dev/vda rw", *self.mounts]))
        return point

    @staticmethod
    def limit(folder, limit, usage, files=0):
        """Writes the files of both versions: a tree's version says which of them are looked at."""
        folder.mkdir(parents=True, exist_ok=True)
        for names in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            for name, value in zip(names, (limit, usage), strict=True):
                (folder / name).write_text(f"{value}\n")
        prefix = "total_" if "cgroup-" in str(folder) else ""
        (folder / "memory.stat").write_text(f"anon 5\n{prefix}active_file {files}\n{prefix}inactive_file {files}\n")


@pytest.fixture
def groups(tmp_path):
    return Groups(tmp_path)


@pytest.mark.parametrize("kind", ["cgroup", "cgroup2"])
def test_the_tightest_of_nested_groups_counts(groups, kind):
    tree = groups.mount(kind, "/slice/pod/container")
    groups.limit(tree / "slice/pod/container", 900 * MIB, 100 * MIB)
    groups.limit(tree / "slice/pod", 500 * MIB, 200 * MIB)
    groups.limit(tree / "slice", "max" if kind == "cgroup2" else 2**63 - 4096, 300 * MIB)
    assert memory_left(groups.process) == 300 * MIB


@pytest.mark.parametrize("kind", ["cgroup", "cgroup2"])
def test_cached_files_are_not_in_the_way(groups, kind):
    tree = groups.mount(kind, "/a")
    groups.limit(tree / "a", 500 * MIB, 450 * MIB, files=100 * MIB)
    assert memory_left(groups.process) == 250 * MIB


@pytest.mark.parametrize("kind", ["cgroup", "cgroup2"])
@pytest.mark.parametrize("group", ["/docker/abc", "/elsewhere"])
def test_a_container_sees_its_own_group_as_the_root(groups, kind, group):
    tree = groups.mount(kind, group, seen_from="/docker/abc")
    groups.limit(tree, 400 * MIB, 100 * MIB)
    assert memory_left(groups.process) == 300 * MIB


def test_a_mixture_of_both_versions(groups):
    groups.mount("cgroup", "/cpus", controllers="cpu,cpuacct")
    old = groups.mount("cgroup", "/old")
    new = groups.mount("cgroup2", "/new")
    groups.limit(groups.root / "cgroup-cpu,cpuacct/cpus", MIB, 0)  # of another controller: nobody's business
    groups.limit(old / "old", 700 * MIB, 0)
    groups.limit(new / "new", 600 * MIB, 0)
    assert memory_left(groups.process) == 600 * MIB


def test_without_limits_and_over_the_limit(groups, tmp_path):
    assert memory_left(tmp_path / "no such process") is None
    tree = groups.mount("cgroup2", "/a")
    groups.limit(tree / "a", "max", 100)
    assert memory_left(groups.process) is None
    groups.limit(tree / "a", 100, 200)
    assert memory_left(groups.process) == 0


def plan(folder, **settings):
    return registry.plan(folder, device="cpu", dtype="float32", page_size=8, **settings)


def test_the_group_decides_the_size_of_the_cache(tiny_folder, monkeypatch):
    """Once a quarter of what is left over, once no more than a full batch of longest requests."""
    monkeypatch.setattr(memory, "memory_left", lambda: 2**63)
    assert plan(tiny_folder).memory.concurrency == 64
    fixed = plan(tiny_folder).memory.weights + plan(tiny_folder).memory.activations
    monkeypatch.setattr(memory, "memory_left", lambda: int((fixed + 8 * MIB) / 0.9))
    found = plan(tiny_folder).memory
    assert found.kv_cache == pytest.approx(2 * MIB, rel=0.01)
    assert found.kv_cache <= 2 * MIB


def test_what_does_not_fit_is_refused_before_it_is_loaded(tiny_folder, monkeypatch):
    monkeypatch.setattr("pipezoo_core.decoder.module.load_module", None)
    monkeypatch.setattr(memory, "memory_left", lambda: 1000 * MIB)
    with pytest.raises(InsufficientMemoryError, match=r"weights .*activations .*KV cache 1.5 GiB.*available 1000 MiB"):
        registry.load(tiny_folder, device="cpu", dtype="float32", kv_cache_memory="1.5GiB")
    monkeypatch.setattr(memory, "memory_left", lambda: 1 * MIB)
    with pytest.raises(InsufficientMemoryError, match=r"available 1 MiB"):
        registry.load(tiny_folder, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("name", "settings", "room"),
    [
        ("dtype: float32 needs", {}, lambda of: of.weights // 2),
        ("max_batch_tokens: 1024 needs", {}, lambda of: of.weights + of.activations // 2),
        ("max_batch_size: 5000 needs", {"max_batch_size": 5000}, lambda of: of.weights + of.activations // 2),
        (
            "max_length: 256 needs",
            {"max_batch_size": 1, "max_batch_tokens": 1},
            lambda of: of.weights + of.activations // 2,
        ),
        ("max_num_loras: 3 needs", {"max_num_loras": 3}, lambda of: of.weights + of.activations + of.lora // 2),
        ("data_parallel_degree: 2 needs", {"data_parallel_degree": 2}, lambda of: of.weights),
    ],
)
def test_the_setting_that_asks_for_too_much_is_named(name, settings, room, tiny_folder, monkeypatch):
    monkeypatch.setattr(memory, "memory_left", lambda: 2**63)
    whole = plan(tiny_folder, linear="torch", **settings).memory
    monkeypatch.setattr(memory, "memory_left", lambda: int(room(whole) / 0.9))
    with pytest.raises(InsufficientMemoryError, match=name) as raised:
        plan(tiny_folder, linear="torch", **settings)
    assert raised.value.found.kv_cache == 0


def test_the_cache_that_is_asked_for_is_told_what_would_fit(tiny_folder, monkeypatch):
    monkeypatch.setattr(memory, "memory_left", lambda: 2**30)
    with pytest.raises(
        InsufficientMemoryError, match=r"kv_cache_memory .*allowed: kv_cache_memory of at most"
    ) as raised:
        plan(tiny_folder, kv_cache_memory="1GiB")
    size, unit = raised.value.allowed.split()[-2:]
    fits = float(size) * 0.99
    assert plan(tiny_folder, kv_cache_memory=f"{fits}{unit}").memory.kv_cache == pytest.approx(fits * MIB, rel=0.01)


def test_a_request_that_the_cache_is_too_small_for_is_told_its_length(tiny_folder):
    settings = {"kv_cache_memory": "40KiB", "max_length": 200}
    with pytest.raises(
        InsufficientPagesError, match=r"kv_cache_memory of at least \d+ bytes, or max_length of"
    ) as raised:
        plan(tiny_folder, **settings)
    needed, longest = (int(word) for word in re.findall(r"\d+", raised.value.allowed))
    assert plan(tiny_folder, **{**settings, "kv_cache_memory": needed}).memory.max_length == 200
    assert plan(tiny_folder, **{**settings, "max_length": longest}).memory.max_length == longest
    with pytest.raises(InsufficientPagesError):
        plan(tiny_folder, **{**settings, "kv_cache_memory": needed - 1})
    with pytest.raises(InsufficientPagesError):
        plan(tiny_folder, **{**settings, "max_length": longest + 1})


@pytest.mark.parametrize("max_length", [16, 100, 256])
def test_the_optimal_batch_size_is_the_plans_concurrency(tiny_folder, max_length):
    found = plan(tiny_folder, kv_cache_memory="1MiB", max_length=max_length)
    config, model = found.pipeline_config, found.architecture.pipeline_model
    batch_size = model.infer_optimal_batch_size(
        config, found.memory.kv_cache, found.files.huggingface_config, [CPU], config.kv_cache, torch.float32
    )
    whole_pages = -(-max_length // 8) * 8
    assert batch_size == found.memory.num_cache_tokens // whole_pages


NATIVE = pytest.mark.skipif(
    NativeKernels(CPU, torch.bfloat16).obstacle is not None, reason="pipezoo-kernels cannot be used here"
)
PRODUCTS = (NativeProduct, OneDNNProduct, QuantizedProduct)
FORMS = [
    *((dtype, "torch") for dtype in ("float32", "bfloat16", "int8", "int4")),
    ("float32", "onednn"),
    *(pytest.param(dtype, "native", marks=NATIVE) for dtype in ("float32", "bfloat16", "int8", "int4")),
]


def weights_of(module):
    """The tensors of a module, and of what its layers compute with, each once."""
    own = [v for layer in module.modules() for v in vars(layer).values()]
    values = [v for product in own if isinstance(product, PRODUCTS) for v in vars(product).values()]
    values += [v for v in own if isinstance(v, tuple)]  # packed without a product
    tensors = [t for v in values for t in (v if isinstance(v, tuple) else [v]) if isinstance(t, torch.Tensor)]
    return {id(t) if t.is_mkldnn else t.data_ptr(): t for t in [*tensors, *module.parameters()]}.values()


@pytest.mark.matrix
@pytest.mark.parametrize(("dtype", "linear"), FORMS)
@pytest.mark.parametrize("tied", [False, True])
def test_weights_and_pages_take_what_the_plan_says(tmp_path, tiny_gguf, dtype, linear, tied, monkeypatch):
    """Sizes that do not divide into the kernels' panels of 16 or 32 columns, nor all of them into groups of 32."""
    monkeypatch.setattr(linear_backends, "HUGE_PAGE", 1)
    sizes = {"hidden_size": 64, "intermediate_size": 72, "vocab_size": len(TOKENS), "attention_bias": True}
    make_llama(**sizes, tie_word_embeddings=tied).save_pretrained(tmp_path)
    tokenizer_from_gguf(open_gguf(tiny_gguf).metadata).save_pretrained(tmp_path)
    settings = {"dtype": dtype, "device": "cpu", "kv_cache_memory": "1MiB", "linear": linear}
    llm = registry.load(tmp_path, **settings)
    planned = registry.plan(tmp_path, **settings).memory
    assert sum(t.numel() * t.element_size() for t in weights_of(llm.model.module)) == planned.weights
    pages = sum(tensor.nbytes for tensor in llm.kv_managers[0].device_tensors)
    assert pages == planned.num_cache_tokens * 2 * 3 * 2 * 16 * llm.model.dtype.itemsize <= planned.kv_cache


OF_WHICH_THE_TEXT = {"gemma3", "mistral3", "qwen3_5", "qwen3_5_moe"}
HYBRIDS = {"granitemoehybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"}


@pytest.fixture(scope="module", params=sorted(PUBLISHED.keys() & {*TYPES} - OF_WHICH_THE_TEXT))
def folder_of_a_type(request, tmp_path_factory, tiny_gguf):
    """A model of each type that a plugin serves; of those that also see the text alone, which is a type of its own."""
    folder = tmp_path_factory.mktemp(request.param)
    own = {"rotary_dim": 8} if request.param == "gptj" else {}
    if request.param in HYBRIDS:
        own = {"layer_types": ["linear_attention", "full_attention"]}
    make_reference(request.param, vocab_size=len(TOKENS), **own).save_pretrained(folder)
    tokenizer_from_gguf(open_gguf(tiny_gguf).metadata).save_pretrained(folder)
    return folder


@pytest.mark.matrix
@pytest.mark.parametrize(("dtype", "linear"), FORMS)
def test_weights_of_each_type_take_what_the_plan_says(folder_of_a_type, dtype, linear, monkeypatch):
    monkeypatch.setattr(linear_backends, "HUGE_PAGE", 1)
    settings = {"dtype": dtype, "device": "cpu", "kv_cache_memory": "4MiB", "linear": linear, "max_length": 64}
    planned = registry.plan(folder_of_a_type, **settings).memory.weights
    with registry.load(folder_of_a_type, **settings) as llm:
        assert sum(t.numel() * t.element_size() for t in weights_of(llm.model.module)) == planned


@NATIVE
def test_packed_weights_take_whole_pages(tiny_folder, monkeypatch):
    settings = {"dtype": "float32", "device": "cpu", "kv_cache_memory": "1MiB", "linear": "native"}
    in_pages = registry.plan(tiny_folder, **settings).memory.weights
    monkeypatch.setattr(linear_backends, "HUGE_PAGE", 1)
    exact = registry.plan(tiny_folder, **settings).memory.weights
    assert 2 * MIB <= in_pages < exact + 2 * MIB


class Layered(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = Embedding(40, 4)
        self.layers = nn.ModuleList(Linear(4, 4, bias=True) for _ in range(3))
        self.head = LMHead.sharing(self.embedding)


def test_each_part_is_converted_before_the_next_is_there(tmp_path):
    with torch.device("meta"):
        module = Layered()
    values = {name: torch.randn(tuple(p.shape)) for name, p in module.named_parameters()}
    save_file(values, tmp_path / "model.safetensors")
    seen = []

    def convert(part):
        seen.append(part)
        waiting = [p for layer in module.layers if layer not in seen for p in layer.parameters()]
        assert all(parameter.is_meta for parameter in waiting)
        assert not any(parameter.is_meta for parameter in part.parameters())

    load_module(module, open_safetensors([tmp_path / "model.safetensors"]), CPU, torch.float32, convert)
    assert seen == [module.embedding, module.head, *module.layers]
    assert module.head.weight is module.embedding.weight
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, values[name]), name


def test_a_part_gets_the_memory_of_the_one_before(tmp_path):
    """Where `convert` has let go of it; what somebody still has is nobody else's."""
    with torch.device("meta"):
        module = Layered()
    values = {name: torch.randn(tuple(p.shape)) for name, p in module.named_parameters()}
    save_file(values, tmp_path / "model.safetensors")
    addresses, kept = [], []

    def convert(part):
        if isinstance(part, Linear) and part is not module.head:
            addresses.append(part.weight.data_ptr())
            weight = part.weight.detach().clone()
            kept.append(part.bias)
            part.compute_with(lambda x: x @ weight.T)

    load_module(module, open_safetensors([tmp_path / "model.safetensors"]), CPU, torch.float32, convert)
    assert len(set(addresses)) == 1
    assert all(torch.equal(bias, values[f"layers.{i}.bias"]) for i, bias in enumerate(kept))
    assert torch.equal(module.layers[1](torch.eye(4)), values["layers.1.weight"].T)


def test_pieces_serve_one_moment_after_the_other():
    assert _pooled([[5, 4], [2, 11, 1]]) == 11 + 4 + 1
    assert _pooled([]) == 0


def test_large_tensors_are_read_in_pieces(tmp_path, monkeypatch):
    values = {"a": torch.randn(10, 3, dtype=torch.float64), "b": torch.randn(7), "c": torch.randn(2, 0)}
    save_file(values, tmp_path / "model.safetensors")
    monkeypatch.setattr("pipezoo_core.weights.base._NUMBERS_AT_ONCE", 8)
    tensors = open_safetensors([tmp_path / "model.safetensors"])
    for name, expected in values.items():
        assert torch.equal(tensors[name].load(), expected)
        half = torch.empty(expected.shape, dtype=torch.bfloat16)
        tensors[name].copy_to(half)
        assert torch.equal(half, expected.bfloat16())


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    save_file({"a": torch.randn(10)}, tmp_path / "model.safetensors")
    tensors = open_safetensors([tmp_path / "model.safetensors"])
    (tmp_path / "model.safetensors").write_bytes(json.dumps({}).encode())
    with pytest.raises(CorruptCheckpointError, match="became shorter"):
        tensors["a"].load()
