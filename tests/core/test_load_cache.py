"""Packed weights that are kept from one load to the next: the same numbers, and nothing that can go wrong but time."""

import gc
import hashlib
import importlib
import json
import os
import shutil
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from deepseek import tiny_deepseek
from families import PROMPTS, load_gguf
from gguf_blocks import as_q4_k_m
from gguf_files import TOKENS, write_llama_gguf, write_parts
from gpt_oss import tiny_gpt_oss
from quantized_files import affine, gptq_config, gptq_parts, write_quantized
from qwen import tiny_qwen
from tiny_models import load_model, logits_of, make_llama

from pipezoo import registry
from pipezoo_core.config import LoRAConfig, SupportedEncoding
from pipezoo_core.decoder import load_cache as identities
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.native import NativeKernels
from pipezoo_core.testing.ranks import joined
from pipezoo_core.weights import LazyTensor
from pipezoo_core.weights.load_cache import (
    LoadCache,
    PackedFile,
    PackedFileWriter,
    StaleEntryError,
    content,
    file_content,
    packed_file,
)
from pipezoo_core.weights.load_cache import cache as caching
from pipezoo_llama.model import LlamaPipelineModel
from pipezoo_llama.plugin import pipezoo_architectures
from pipezoo_llama.weight_adapters import adapt_safetensors

SIZES = {"vocab_size": len(TOKENS), "hidden_size": 64, "intermediate_size": 96}
ENCODINGS = [SupportedEncoding(name) for name in ("float32", "bfloat16", "int8", "int4")]
INT4 = SupportedEncoding.int4


@pytest.fixture(autouse=True)
def _kernels():
    if obstacle := NativeKernels(torch.device("cpu"), torch.bfloat16).obstacle:
        pytest.skip(obstacle)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny llama and its folder."""
    folder = tmp_path_factory.mktemp("model")
    reference = make_llama(**SIZES)
    reference.save_pretrained(folder)
    return folder, reference.config


def load(made, cache, encoding=INT4, **settings):
    prompts = [[token % len(TOKENS) for token in prompt] for prompt in PROMPTS]
    folder, config = made
    model = load_model(
        LlamaPipelineModel,
        folder,
        config,
        adapt_safetensors,
        encoding=encoding,
        load_cache=cache if cache is None else str(cache),
        **settings,
    )
    return torch.cat(logits_of(model, prompts))


@pytest.fixture
def packs_nothing(monkeypatch):
    """Is called when no weight is to be packed any more."""

    def forbid():
        def allocate(self, size):
            raise AssertionError("a weight is packed")

        monkeypatch.setattr(NativeKernels, "_allocate", allocate)

    return forbid


def entries(cache):
    return sorted(cache.glob("*.packed"))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_second_load_packs_nothing_and_computes_the_same(tied, encoding, tmp_path, packs_nothing):
    reference = make_llama(**SIZES, tie_word_embeddings=tied, attention_bias=True)
    reference.save_pretrained(tmp_path / "model")
    made, cache = (tmp_path / "model", reference.config), tmp_path / "cache"
    expected = load(made, None, encoding)
    assert torch.equal(load(made, cache, encoding), expected)
    packs_nothing()
    assert torch.equal(load(made, cache, encoding), expected)
    assert len(entries(cache)) == 1


BLOCKS = {"hidden_size": 64, "intermediate_size": 96}
EXPERTS = {"moe_intermediate_size": 32}
FAMILIES = {
    "deepseek_v3": lambda folder: tiny_deepseek.saved(tiny_deepseek.make("deepseek_v3", **BLOCKS, **EXPERTS), folder),
    "gpt_oss": lambda folder: tiny_gpt_oss.saved(tiny_gpt_oss.make(**{**BLOCKS, "intermediate_size": 32}), folder),
    "qwen2_moe": lambda folder: tiny_qwen.saved(tiny_qwen.make("qwen2_moe", **BLOCKS, **EXPERTS), folder),
}


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(family, encoding, tmp_path, packs_nothing):
    made = FAMILIES[family](tmp_path / "model")

    def logits(**settings):
        return torch.cat(logits_of(load_model(*made, encoding=SupportedEncoding(encoding), **settings), [[3, 1, 2, 9]]))

    expected, settings = logits(), {"load_cache": str(tmp_path / "cache")}
    assert torch.equal(logits(**settings), expected)
    packs_nothing()
    assert torch.equal(logits(**settings), expected)
    assert len(entries(tmp_path / "cache")) == 1


def test_a_gguf_file_that_runs_as_it_lies(tmp_path, packs_nothing):
    reference = make_llama(vocab_size=len(TOKENS), hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    path = write_llama_gguf(tmp_path / "m.gguf", reference, as_q4_k_m)

    def logits():
        settings = {"load_cache": str(tmp_path / "cache")}
        model = load_gguf(*pipezoo_architectures(), path, SupportedEncoding.packed, **settings)
        return logits_of(model, [[3, 1, 2]])[0]

    expected = logits()
    packs_nothing()
    assert torch.equal(logits(), expected)


def test_the_files_of_a_gguf_model_are_those_that_were_opened(tmp_path):
    def logits(path, kept=True):
        settings = {"load_cache": str(tmp_path / "cache")} if kept else {}
        return logits_of(load_gguf(*pipezoo_architectures(), path, INT4, **settings), [[3, 1, 2]])[0]

    reference = make_llama(**SIZES)
    whole = write_llama_gguf(tmp_path / "named-00002-of-00003.gguf", reference)  # which is no part
    expected = logits(whole, kept=False)
    assert torch.equal(logits(whole), expected)
    folder = write_parts(tmp_path / "parts", reference, whole)
    for _ in range(2):
        assert torch.equal(logits(folder / "m-00002-of-00003.gguf"), expected)
    assert len(entries(tmp_path / "cache")) == 2
    with torch.no_grad():
        reference.model.layers[0].mlp.down_proj.weight.mul_(2)
    shutil.rmtree(folder)
    write_parts(folder, reference, write_llama_gguf(whole, reference))
    assert not torch.equal(logits(folder / "m-00001-of-00003.gguf"), expected)


def test_the_second_load_reads_no_weight_that_is_packed(made, tmp_path, monkeypatch):
    load(made, tmp_path)
    read, copy_to = [], LazyTensor.copy_to

    def noted(self, target):
        read.append(self.shape)
        copy_to(self, target)

    monkeypatch.setattr(LazyTensor, "copy_to", noted)
    load(made, tmp_path)
    assert [shape for shape in read if len(shape) > 1] == [(SIZES["vocab_size"], SIZES["hidden_size"])]  # the embedding


@pytest.mark.parametrize("damage", ["first", "last", "index", "short", "empty", "foreign"])
def test_a_damaged_entry_is_dropped_with_a_line_and_made_anew(damage, made, tmp_path, caplog):
    expected = load(made, tmp_path)
    (path,) = entries(tmp_path)
    whole = path.read_bytes()
    if damage == "foreign":
        load(made, tmp_path, SupportedEncoding.int8)
        (other,) = set(entries(tmp_path)) - {path}
        other.replace(path)
    else:
        at = {"first": 0, "last": len(whole) - 1, "index": len(whole) - 100}.get(damage, 0)
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        path.write_bytes({"short": whole[:-1000], "empty": b""}.get(damage, changed))
    assert torch.equal(load(made, tmp_path), expected)
    assert "not used, and removed" in caplog.text
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": None}, {"weights": [["a", 0]]}, {"weights": [["a", "0", 8]]}, {"weights": [["a", -64, 8]]},
        {"weights": [["a", 10**9, 8]]}, {"weights": [["a", True, 8]]}, {"weights": [["a", 0, 8.0]]}, {"chunks": None},
        {"chunks": []}, {"key": None},
    ],
    ids=str,
)  # fmt: skip
def test_an_index_of_another_form_is_of_no_entry(changes, tmp_path):
    entry = LoadCache(tmp_path, 10**6).entry({"name": "a"})
    with entry.written() as writer:
        writer.add("weight", torch.zeros(1000, dtype=torch.uint8))
    (path,) = entries(tmp_path)
    data, end = path.read_bytes(), packed_file._END
    length, _, magic = end.unpack(data[-end.size :])
    begin = len(data) - end.size - length
    index = json.dumps({**json.loads(data[begin : -end.size]), **changes}).encode()
    path.write_bytes(data[:begin] + index + end.pack(len(index), hashlib.sha256(index).digest(), magic))
    assert entry.read() is None
    assert not path.exists()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_waited_for(make, made, tmp_path, caplog):
    expected = load(made, tmp_path)
    (path,) = entries(tmp_path)
    path.unlink()
    make(path)
    assert torch.equal(load(made, tmp_path), expected)
    assert "are not used: it is no file" in caplog.text


def test_an_entry_with_other_weights_than_are_wanted_is_dropped(made, tmp_path, caplog, monkeypatch):
    take = PackedFileWriter.add
    monkeypatch.setattr(PackedFileWriter, "add", lambda self, name, packed: take(self, f"other {name}", packed))
    expected = load(made, tmp_path)
    monkeypatch.undo()
    assert torch.equal(load(made, tmp_path), expected)
    assert "is wanted" in caplog.text


@pytest.mark.parametrize("found_at", ["take", "check_end"])
def test_a_stale_entry_is_let_go_before_the_weights_are_packed(found_at, made, tmp_path, monkeypatch):
    load(made, tmp_path)
    read, taken, alive = packed_file._read_weights, [], []

    def watched(*arguments):
        data = read(*arguments)
        taken.append(weakref.ref(data))
        return data

    def stale(self, *_):
        raise StaleEntryError("it is of another load")

    def noted(self, name, packed):
        alive.append(taken[0]() is not None)

    monkeypatch.setattr(packed_file, "_read_weights", watched)
    monkeypatch.setattr(PackedFile, found_at, stale)
    monkeypatch.setattr(PackedFileWriter, "add", noted)
    gc.disable()  # nobody knows when it would come
    try:
        load(made, tmp_path)
    finally:
        gc.enable()
    assert alive
    assert not any(alive)


def test_other_numbers_in_a_file_of_the_same_size_and_time_are_another_entry(tmp_path, made):
    folder, cache = tmp_path / "model", tmp_path / "cache"
    first, second = make_llama(**SIZES), make_llama(**SIZES, rms_norm_eps=1e-5)
    with torch.no_grad():
        second.model.layers[0].mlp.down_proj.weight.mul_(2)
    first.save_pretrained(folder)
    path = folder / "model.safetensors"
    before, times = load((folder, first.config), cache), path.stat()
    size = path.stat().st_size
    second.save_pretrained(folder)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == size
    assert not torch.equal(load((folder, first.config), cache), before)
    assert len(entries(cache)) == 2


def test_what_config_json_says_of_quantized_numbers_is_of_the_identity(tmp_path):
    folder, reference = tmp_path / "model", make_llama(**{**SIZES, "hidden_size": 128, "intermediate_size": 128})
    reference.save_pretrained(folder)
    write_quantized(folder, gptq_config(4, 64), gptq_parts, lambda _, values: affine(values, group=64))
    made = folder, reference.config
    before = load(made, tmp_path / "cache", SupportedEncoding.packed)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (folder / "config.json").write_text(json.dumps(config))
    found = load(made, tmp_path / "cache", SupportedEncoding.packed)
    assert torch.equal(found, load(made, None, SupportedEncoding.packed))
    assert not torch.equal(found, before)


def test_a_plugin_that_is_edited_gets_no_weights_of_before(made, tmp_path, monkeypatch):
    package = tmp_path / "edited_plugin"
    package.mkdir()
    for name, text in (("__init__.py", ""), ("adapters.py", "FACTOR = 1")):
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, package.name, importlib.import_module(package.name))
    module_class = type("Module", (LlamaPipelineModel.module_class,), {"__module__": f"{package.name}.model"})
    monkeypatch.setattr(LlamaPipelineModel, "module_class", module_class)
    load(made, tmp_path / "cache")
    load(made, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 1
    (package / "adapters.py").write_text("FACTOR = 2")
    identities._sources_hash.cache_clear()  # a new process
    load(made, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 2


def test_a_content_is_read_once_until_something_changes(tmp_path, monkeypatch):
    path, notes = tmp_path / "weights", tmp_path / "notes"
    path.write_bytes(b"one")
    written = path.stat().st_ctime_ns
    monkeypatch.setattr(content.time, "time_ns", lambda: written)
    first = file_content(path, notes).sha256
    assert not list(notes.glob("*"))  # written just now: it could be written again at the same time
    later = written + 10**10
    monkeypatch.setattr(content.time, "time_ns", lambda: later)
    assert file_content(path, notes).sha256 == first
    with monkeypatch.context() as patch:
        patch.setattr(content.hashlib, "file_digest", None)
        assert file_content(path, notes).sha256 == first
    times = path.stat()
    while path.stat().st_ctime_ns == times.st_ctime_ns:  # file systems may have coarse clocks
        path.write_bytes(b"two")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_content(path, notes).sha256 != first


def test_the_name_that_the_hub_gives_a_file_is_no_proof(tmp_path):
    digest = "ab" * 32
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / digest).write_bytes(b"weights")
    (tmp_path / "snapshot").symlink_to(tmp_path / "blobs" / digest)
    assert file_content(tmp_path / "snapshot", tmp_path / "notes").sha256 == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("is_settled", [True, False])
def test_nothing_is_kept_of_a_load_during_which_a_file_changes(is_settled, made, tmp_path, monkeypatch, caplog):
    folder, cache = shutil.copytree(made[0], tmp_path / "model"), tmp_path / "cache"
    path = folder / "model.safetensors"
    if is_settled:
        later = path.stat().st_ctime_ns + 10**10
        monkeypatch.setattr(content.time, "time_ns", lambda: later)
    else:  # so soon that the times are the same
        times = [path.stat().st_mtime_ns] * 2
        monkeypatch.setattr(content, "_state", lambda path: [1, 2, path.stat().st_size, *times])
        monkeypatch.setattr(content.time, "time_ns", lambda: times[0])
    data, add = path.read_bytes(), PackedFileWriter.add

    def changing(self, name, packed):
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        add(self, name, packed)

    monkeypatch.setattr(PackedFileWriter, "add", changing)
    load((folder, made[1]), cache)
    assert not entries(cache)
    assert "changed while" in caplog.text


def test_a_cache_that_can_only_be_read_is_used(made, tmp_path, monkeypatch, packs_nothing):
    expected = load(made, tmp_path)

    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(caching.os, "utime", refuse)
    packs_nothing()
    assert torch.equal(load(made, tmp_path), expected)


def test_an_entry_that_cannot_be_read_stays(made, tmp_path, monkeypatch, caplog):
    expected = load(made, tmp_path)
    (path,) = entries(tmp_path)
    before = path.stat().st_ino

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(caching, "PackedFile", fail)
    monkeypatch.setattr(caching.CacheEntry, "_finish", lambda *_: None)  # which would put the same there anew
    assert torch.equal(load(made, tmp_path), expected)
    assert path.stat().st_ino == before
    assert "are not used: [Errno 5]" in caplog.text


def test_what_was_used_last_stays_within_the_bound(tmp_path):
    def write(name, bound=10**6):
        with LoadCache(tmp_path, bound).entry({"name": name}).written() as writer:
            writer.add("weight", torch.zeros(1000, dtype=torch.uint8))

    for name in "abc":
        write(name)
    for entry, age in zip("abc", (1, 3, 2), strict=True):
        path = LoadCache(tmp_path, 1).entry({"name": entry})._path
        os.utime(path, ns=(10**18 - age, 10**18 - age))
    size = entries(tmp_path)[0].stat().st_size
    write("d", 3 * size)
    left = [name for name in "abcd" if LoadCache(tmp_path, 1).entry({"name": name}).read() is not None]
    assert left == ["a", "c", "d"]


@pytest.mark.parametrize("obstacle", ["size", "folder", "disk"])
def test_weights_that_cannot_be_kept_are_loaded_all_the_same(obstacle, made, tmp_path, caplog, monkeypatch):
    expected, cache = load(made, None), tmp_path / "cache"
    settings = {"load_cache_size": 5000} if obstacle == "size" else {}
    if obstacle == "folder":
        cache.write_text("")
    if obstacle == "disk":
        write, add = PackedFileWriter._write, PackedFileWriter.add

        def fail(self, data):
            write(self, data)
            if self._size > 20_000:
                raise OSError(28, "No space left on device")

        def checked(self, name, packed):
            add(self, name, packed)
            assert self.failure is None or not os.fstat(self._file.fileno()).st_size

        monkeypatch.setattr(PackedFileWriter, "_write", fail)
        monkeypatch.setattr(PackedFileWriter, "add", checked)
    assert torch.equal(load(made, cache, **settings), expected)
    assert "are not kept" in caplog.text
    assert obstacle == "folder" or not entries(cache)


def test_a_load_that_ends_leaves_nothing_behind(made, tmp_path, monkeypatch):
    add, names = PackedFileWriter.add, []

    def interrupted(self, name, packed):
        add(self, name, packed)
        names.append(name)
        if len(names) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(PackedFileWriter, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(made, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".hash"]


def test_loads_at_the_same_time_share_one_entry(made, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: load(made, tmp_path), range(2))
    assert torch.equal(first, second)
    assert torch.equal(load(made, tmp_path), first)
    assert len(entries(tmp_path)) == 1
    assert not list(tmp_path.glob("*.part"))


def test_what_is_packed_otherwise_is_another_entry(made, tmp_path):
    expected = load(made, None)
    for lora in (None, LoRAConfig(max_num_loras=1), None, LoRAConfig(max_num_loras=1)):
        assert (load(made, tmp_path, lora=lora) - expected).abs().max() < 0.05 * expected.abs().max()
    assert len(entries(tmp_path)) == 2


def test_each_rank_has_its_own_entry(made, tmp_path):
    folder, config = made
    settings = {"encoding": SupportedEncoding.int8, "tensor_parallel_degree": 2, "load_cache": str(tmp_path / "cache")}

    def model(group):
        return load_model(LlamaPipelineModel, folder, config, adapt_safetensors, group=group, **settings)

    def logits(number):
        place = tmp_path / f"ranks{number}"
        place.mkdir()
        with joined(place, 2, lambda group: model(group).serve()) as group:
            return logits_of(model(group), [[1, 2, 3]])[0]

    assert torch.equal(logits(0), logits(1))
    assert len(entries(tmp_path / "cache")) == 2


def test_ranks_share_what_the_folder_may_hold(tmp_path, caplog):
    for rank in range(2):
        entry = LoadCache(tmp_path, 1000).entry({"rank": rank}, num_ranks=2)
        with entry.written() as writer:
            writer.add("weight", torch.zeros(300, dtype=torch.uint8))
    assert not entries(tmp_path)  # with their indices they are larger than a half each
    assert "more than load_cache_size gives each rank (500 bytes)" in caplog.text
    for rank in range(2):
        entry = LoadCache(tmp_path, 1600).entry({"rank": rank}, num_ranks=2)
        with entry.written() as writer:
            writer.add("weight", torch.zeros(300, dtype=torch.uint8))
    assert len(entries(tmp_path)) == 2


def test_what_was_written_just_now_stays_whatever_the_clock_says(tmp_path):
    def write(name):
        with LoadCache(tmp_path, 2000).entry({"name": name}).written() as writer:
            writer.add("weight", torch.zeros(1200, dtype=torch.uint8))

    write("a")
    (path,) = entries(tmp_path)
    os.utime(path, (2**33, 2**33))  # of a clock that was put back since
    write("b")
    assert LoadCache(tmp_path, 2000).entry({"name": "b"}).read() is not None
    assert len(entries(tmp_path)) == 1


def test_the_setting_is_a_folder_or_that_of_the_user(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = {"dtype": "int8", "device": "cpu", "kv_cache_memory": "4MiB"}
    with registry.load(tiny_folder, load_cache=True, **settings):
        assert len(entries(tmp_path / "pipezoo" / "weights")) == 1
    assert registry.plan(tiny_folder, load_cache=False, **settings).pipeline_config.load_cache is None
    for wrong in ("", 3, "nul\0x", "\ud800"):
        with pytest.raises(InvalidSettingError, match="True, a folder, or None"):
            registry.plan(tiny_folder, load_cache=wrong, **settings)
