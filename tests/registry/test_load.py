"""`registry.load`: every kind of source, and every way a checkpoint can be bad."""

import json
import shutil
import struct
import subprocess
import sys

import pytest
import torch
from gguf_files import CHAT_TEMPLATE, TOKENS
from safetensors.torch import load_file, save_file
from tiny_models import cache_memory, make_llama

from pipezoo import registry
from pipezoo_core.errors import (
    CheckpointMismatchError,
    CorruptCheckpointError,
    InsufficientMemoryError,
    InsufficientPagesError,
    InvalidSettingError,
    MissingShardError,
    ModelNotFoundError,
    PluginNotFoundError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
    UnsupportedModelError,
)
from pipezoo_core.native import NativeKernels
from pipezoo_core.pipeline import TextGenerationPipeline
from pipezoo_core.tokenizer import tokenizer_from_gguf
from pipezoo_core.weights import encoding, open_gguf, open_weights

CPU = torch.device("cpu")
SETTINGS = {"dtype": "float32", "device": "cpu", "page_size": 8, "kv_cache_memory": "4MiB"}
GREEDY = {"temperature": 0.0, "max_new_tokens": 8, "ignore_eos": True}


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def edit_config(folder, name="config.json", **changes):
    path = folder / name
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in {**config, **changes}.items() if v is not ...}))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_folder_and_gguf_give_the_same_answer(tiny_folder, tiny_gguf):
    from_folder, from_file = (registry.load(source, **SETTINGS) for source in (tiny_folder, tiny_gguf))
    assert isinstance(from_folder, TextGenerationPipeline)
    assert from_folder.generate("hello", **GREEDY)[0].tokens == from_file.generate("hello", **GREEDY)[0].tokens
    assert from_folder.chat([{"role": "user", "content": "hello"}], **GREEDY).tokens


def test_package_that_carries_weights(tiny_gguf, tmp_path, monkeypatch):
    package = tmp_path / "tiny_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copy(tiny_gguf, package)
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.load("pkg:tiny_weights", **SETTINGS).generate("hello", **GREEDY)[0].tokens


def test_a_gguf_file_may_be_named_in_capitals(tiny_gguf, tmp_path):
    path = tmp_path / "Tiny.GGUF"
    shutil.copy(tiny_gguf, path)
    expected = registry.load(tiny_gguf, **SETTINGS).generate("hello", **GREEDY)[0].tokens
    assert registry.load(path, **SETTINGS).generate("hello", **GREEDY)[0].tokens == expected
    assert registry.plan(tmp_path, **SETTINGS).files.source.path == path
    assert sum(tensor.num_elements for tensor in open_weights([path]).values()) > 0


def test_plan_reads_no_weights(folder, monkeypatch):
    edit_weights(folder, lambda tensors: None)
    monkeypatch.setattr("pipezoo_core.decoder.module.load_module", None)
    plan = registry.plan(folder, linear="torch", **SETTINGS)
    assert plan.memory.weights == sum(t.numel() * 4 for t in load_file(folder / "model.safetensors").values())
    assert plan.memory.num_cache_tokens * plan.memory.concurrency > 0
    assert "KV cache 4 MiB" in str(plan.memory)


def test_generation_config_gives_the_defaults(folder):
    edit_config(folder, "generation_config.json", temperature=0.25, top_k=7, eos_token_id=[3, 4], do_sample=True)
    llm = registry.load(folder, **SETTINGS)
    assert (llm.sampling_params.temperature, llm.sampling_params.top_k) == (0.25, 7)
    assert {3, 4} <= llm.tokenizer.eos_token_ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"a": ' + "[" * 200_000, "is not JSON"),
        ("[]", "is not a JSON object"),
        (" " * (9 << 20), "is too large"),
        ('{"temperature": -1.0}', r"setting 'temperature' is not valid .found: -1\.0.*Correct the value in the file"),
        ('{"top_k": "many"}', "setting 'top_k' is not valid"),
        ('{"max_new_tokens": 2, "min_new_tokens": 3}', "setting 'min_new_tokens' is above"),
    ],
    ids=["truncated", "nested", "a list", "large", "temperature", "top_k", "min_new_tokens"],
)
def test_damaged_generation_config(folder, text, message):
    """It is the file that the error names, and not a setting of the caller's."""
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(CorruptCheckpointError, match=rf"generation_config\.json:? {message}"):
        registry.load(folder, **SETTINGS)


def test_dtype(folder):
    assert registry.load(folder, **{**SETTINGS, "dtype": "bfloat16"}).model.dtype is torch.bfloat16
    assert registry.load(folder, **{**SETTINGS, "dtype": "auto"}).model.dtype is torch.float32
    with pytest.raises(InvalidSettingError, match=r"float8.*allowed: auto, float32"):
        registry.load(folder, **{**SETTINGS, "dtype": "float8"})


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_lenght": 5}, InvalidSettingError, "unknown setting 'max_lenght'.*max_length"),
        ({"max_length": 10**6}, InvalidSettingError, "at most 256"),
        ({"max_length": 0}, InvalidSettingError, "max_length"),
        ({"page_size": 0}, InvalidSettingError, "page_size"),
        ({"kv_cache_memory": "lots"}, InvalidSettingError, "memory"),
        ({"attention": "flash9"}, InvalidSettingError, "attention"),
        ({"device": "cuda:99"}, InvalidSettingError, "no such device"),
        ({"device": "toaster"}, InvalidSettingError, "no such device"),
        ({"kv_cache_memory": "900TB"}, InsufficientMemoryError, "weights .*KV cache .*available"),
        ({"kv_cache_memory": 4096, "max_length": 200}, InsufficientPagesError, "too small for one request"),
        ({"kv_cache_memory": 1}, InsufficientPagesError, "too small for one request"),
    ],
)
def test_bad_settings(tiny_folder, settings, error, message):
    with pytest.raises(error, match=message):
        registry.load(tiny_folder, **{**SETTINGS, **settings})


def test_small_cache_shortens_the_context_unless_a_length_was_asked_for(tiny_folder):
    llm = registry.load(tiny_folder, **{**SETTINGS, "kv_cache_memory": cache_memory(3)})
    assert llm.pipeline_config.max_length == 24
    assert len(llm.generate("hello", temperature=0.0, ignore_eos=True)[0].tokens) == 20


def test_unknown_model_type(folder):
    edit_config(folder, model_type="zamba", architectures=["ZambaForCausalLM"])
    with pytest.raises(PluginNotFoundError, match=r"model_type 'zamba' \(installed: .*gemma, .* more\)"):
        registry.load(folder)


def test_other_head(folder):
    edit_config(folder, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UnsupportedModelError, match="LlamaForSequenceClassification"):
        registry.load(folder)


@pytest.mark.parametrize(
    "settings",
    [{}, {"linear": "native"}, {"linear": "torch"}, {"attention": "paged"}, {"max_num_loras": 1}],
    ids=str,
)
def test_auto_takes_bfloat16_of_a_slow_cpu_only_where_the_kernels_compute(folder, settings, monkeypatch):
    can_use_kernels = NativeKernels(CPU, torch.bfloat16).obstacle is None
    if settings == {"linear": "native"} and not can_use_kernels:
        pytest.skip("no kernels here")
    monkeypatch.setattr(encoding, "_cpu_has_bfloat16", lambda: False)
    edit_weights(folder, lambda t: t.update({name: tensor.bfloat16() for name, tensor in t.items()}))
    by_kernels = settings in ({}, {"linear": "native"}) and can_use_kernels
    plan = registry.plan(folder, device="cpu", kv_cache_memory="4MiB", **settings)
    assert plan.pipeline_config.encoding == ("bfloat16" if by_kernels else "float32")
    asked = registry.plan(folder, dtype="bfloat16", device="cpu", kv_cache_memory="4MiB", **settings)
    assert asked.pipeline_config.encoding == "bfloat16"


def rope(rope_type, **values):
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 1e4, **values}}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, UnsupportedModelError, "longrope|config"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            UnsupportedModelError,
            "part of each head",
        ),
        ({"hidden_size": 33}, UnsupportedModelError, "multiple"),
        ({"hidden_act": "sparkle"}, UnsupportedModelError, "sparkle"),
        ({"num_attention_heads": 0}, UnsupportedModelError, "config"),
        ({"num_attention_heads": -4}, UnsupportedModelError, "num_heads"),
        ({"num_key_value_heads": 3}, UnsupportedModelError, "shared evenly"),
        ({"num_key_value_heads": 0}, UnsupportedModelError, "num_kv_heads"),
        ({"head_dim": 0}, UnsupportedModelError, "head_dim"),
        ({"head_dim": 7}, UnsupportedModelError, "even rotary"),
        ({"vocab_size": 0}, UnsupportedModelError, "vocab_size"),
        ({"num_hidden_layers": -1}, UnsupportedModelError, "num_layers"),
        ({"max_position_embeddings": 0}, UnsupportedModelError, "max_seq_len"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, UnsupportedModelError, "'rope_theta'"),
        (rope("linear", factor=None), UnsupportedModelError, "'factor'"),
        (rope("linear", factor="4.0"), UnsupportedModelError, "found: '4.0'"),
        (rope("dynamic", factor=None), UnsupportedModelError, "'factor'"),
        (rope("yarn", factor=2.0, rope_theta=1), UnsupportedModelError, "another rope_theta"),
        ({"num_hidden_layers": "three"}, UnsupportedModelError, "config"),
        ({"num_hidden_layers": 4}, CheckpointMismatchError, "missing: model.layers.3"),
        ({"num_hidden_layers": 2}, CheckpointMismatchError, "left over: model.layers.2"),
        ({"intermediate_size": 128}, CheckpointMismatchError, "wrong shape"),
    ],
)
def test_config_that_does_not_fit(folder, changes, error, message):
    edit_config(folder, **changes)
    with pytest.raises(error, match=message):
        registry.load(folder, **SETTINGS)


@pytest.mark.parametrize("depth", [50, 700])
def test_deep_nesting_in_a_config_is_ignored_or_refused(folder, depth):
    path = folder / "config.json"
    path.write_text(path.read_text().replace("{", '{"unknown": ' + "[" * depth + "]" * depth + ", ", 1))
    if depth == 50:
        assert registry.plan(folder, **SETTINGS).files.huggingface_config.hidden_size == 32
    else:
        with pytest.raises((UnsupportedModelError, CorruptCheckpointError)):
            registry.plan(folder, **SETTINGS)


def test_missing_and_left_over_weights_are_named(folder):
    edit_weights(folder, lambda t: (t.pop("model.norm.weight"), t.update(stranger=torch.ones(2))))
    with pytest.raises(CheckpointMismatchError, match=r"missing: model.norm.weight; left over: stranger") as caught:
        registry.load(folder, **SETTINGS)
    assert caught.value.missing == ["model.norm.weight"]
    assert caught.value.unexpected == ["stranger"]


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_truncated_safetensors(folder, share):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        registry.load(folder, **SETTINGS)


def test_corrupt_safetensors_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])
    with pytest.raises(CorruptCheckpointError):
        registry.load(folder, **SETTINGS)


def test_integer_weights(folder):
    edit_weights(folder, lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}))
    with pytest.raises(UnsupportedCheckpointError, match=r"model\.norm\.weight: torch\.int8"):
        registry.load(folder, **SETTINGS)


def write_index(folder, weight_map):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_missing_shard(folder):
    write_index(folder, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    with pytest.raises(MissingShardError, match=r"model-00002-of-00002\.safetensors"):
        registry.load(folder, **SETTINGS)


def test_index_that_climbs_out(folder):
    write_index(folder, {"a": "../../etc/passwd"})
    with pytest.raises(UnsafeCheckpointError, match=r"\.\./\.\./etc/passwd"):
        registry.load(folder, **SETTINGS)


@pytest.mark.parametrize(
    "index",
    ["[]", "{", '{"weight_map": 3}', '{"weight_map": ' + "[" * 200_000, " " * (33 << 20) + '{"weight_map": {}}'],
    ids=["a list", "truncated", "no map", "nested", "large"],
)
def test_damaged_index(folder, index):
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors\.index\.json is "):
        registry.load(folder, **SETTINGS)


def test_pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpointError, match=r"pytorch_model\.bin.*safetensors"):
        registry.load(folder, **SETTINGS)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="no weights"):
        registry.load(folder, **SETTINGS)


def test_remote_code_is_never_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", None]}
    edit_config(folder, auto_map=auto_map)
    edit_config(folder, "tokenizer_config.json", auto_map=auto_map)
    assert registry.load(folder, **SETTINGS).generate("hello", **GREEDY)[0].tokens


def test_chat_template_cannot_reach_the_interpreter(folder):
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    for path in folder.glob("chat_template.jinja"):
        path.write_text(evil)
    edit_config(folder, "tokenizer_config.json", chat_template=evil)
    llm = registry.load(folder, **SETTINGS)
    with pytest.raises(ValueError, match="template"):
        llm.chat([{"role": "user", "content": "hello"}])
    assert evil != CHAT_TEMPLATE
    assert llm.generate("hello", **GREEDY)[0].tokens


def test_after_an_error_the_next_load_works(folder, tiny_folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(CorruptCheckpointError):
        registry.load(folder)
    assert registry.load(tiny_folder, **SETTINGS).generate("hello", **GREEDY)[0].tokens


@pytest.mark.slow
def test_nothing_imports_torchs_compiler(tiny_gguf, tmp_path):
    """It takes a second and 80 MB, which transformers' configs, and recording a step, would spend on it."""
    make_llama(vocab_size=len(TOKENS), head_dim=32).save_pretrained(tmp_path)
    tokenizer_from_gguf(open_gguf(tiny_gguf).metadata).save_pretrained(tmp_path)
    script = (
        "import sys; from pipezoo import registry\n"
        f"llm = registry.load({str(tmp_path)!r}, device='cpu', dtype='float32', kv_cache_memory='4MiB')\n"
        "assert len(llm.generate('hello', max_new_tokens=4, ignore_eos=True)[0].tokens) == 4\n"
        "print(*({'torch._dynamo', 'sympy', 'torch.distributed.tensor'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == ""
