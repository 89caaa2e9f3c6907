"""An adapter's files: what is read, and what is refused, with its name."""

import json
import math
import subprocess
import sys

import pytest
import torch
from lora.peft_adapters import merged, save_adapter
from registry.hub_stand_in import Repository, serving
from safetensors.torch import save_file
from tiny_models import TINY_LLAMA, load_model, make_llama

from pipezoo_core.config import LoRAConfig
from pipezoo_core.errors import (
    AdapterNotFoundError,
    CorruptCheckpointError,
    InvalidSettingError,
    ModelNotFoundError,
    UnsafeCheckpointError,
    UnsupportedAdapterError,
)
from pipezoo_core.lora import layer_patterns, open_adapter, resolve_lora_config
from pipezoo_llama.model import LlamaPipelineModel
from pipezoo_llama.weight_adapters import adapt_safetensors

PREFIX = "base_model.model."
Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base():
    return make_llama(tie_word_embeddings=False)


@pytest.fixture(scope="module")
def model_folder(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    base.save_pretrained(folder)
    return folder


@pytest.fixture
def load(base, model_folder):
    def load(**settings):
        return load_model(
            LlamaPipelineModel, model_folder, base.config, adapt_safetensors, lora=LoRAConfig(**settings)
        ).lora_manager

    return load


def write(folder, config=None, tensors=None, layer=Q_PROJ, rank=4, shape=(32, 32)):
    """Writes an adapter of one layer, by hand."""
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", **(config or {})}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    of_layer = {
        f"{PREFIX}{layer}.lora_A.weight": torch.ones(rank, shape[1]),
        f"{PREFIX}{layer}.lora_B.weight": torch.ones(shape[0], rank),
    }
    save_file(of_layer if tensors is None else tensors(of_layer), folder / "adapter_model.safetensors")
    return str(folder)


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 2.0),
        ({"lora_alpha": 3}, 0.75),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 1}}, 0.25),
        ({"alpha_pattern": {"proj": 1, r"layers\.\d+\.self_attn\.q_proj": 2, "q_proj": 3}}, 0.5),
        (
            {"r": 2, "rank_pattern": {"self_attn.q_proj": 4}, "use_rslora": True, "lora_alpha": math.sqrt(8)},
            math.sqrt(2),
        ),
    ],
)
def test_scaling(config, scaling, tmp_path):
    lora = open_adapter(f"name={write(tmp_path, config)}")
    assert lora.name == "name"
    assert lora.rank == 4
    assert lora.layers[Q_PROJ].scaling == pytest.approx(scaling)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_ranks_and_scalings_are_those_of_peft(base, tmp_path, use_rslora):
    """For every layer, from the weights: what peft adds to a weight is B A · scaling."""
    save_adapter(
        base,
        tmp_path,
        use_rslora=use_rslora,
        rank_pattern={"q_proj": 2, r"model\.layers\.[01]\.mlp\.gate_proj": 7},
        alpha_pattern={"layers.0.self_attn.q_proj": 5, "up_proj": 100, r".*n\.q_proj": 7},
    )
    adapted, lora = merged(base, tmp_path), open_adapter(str(tmp_path))
    assert len(lora.layers) == 7 * TINY_LLAMA["num_hidden_layers"]
    assert {weights.a.shape[0] for weights in lora.layers.values()} == {2, 4, 7}
    for name, weights in lora.layers.items():
        delta = adapted.get_submodule(name).weight - base.get_submodule(name).weight
        torch.testing.assert_close(weights.b.load() @ weights.a.load() * weights.scaling, delta, atol=1e-5, rtol=1e-4)


# What peft saves when it is asked for more than A and B of linear layers.
REFUSED_KINDS = {
    "dora": ({"use_dora": True}, "use_dora=True"),
    "bias": ({"bias": "lora_only"}, "bias='lora_only'"),
    "modules_to_save": ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "modules_to_save="),
    "embedding": ({"target_modules": ["embed_tokens"]}, "lora_embedding_A"),
    "head": ({"target_modules": ["lm_head"]}, "lm_head.base_layer.weight"),
    "token_indices": ({"trainable_token_indices": [1, 2], "target_modules": ["q_proj"]}, "trainable_token_indices="),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    "too_great_a_rank": ({"r": 9}, "too great a rank .found: 9; allowed: at most 8"),
    "rank_of_one_layer": ({"rank_pattern": {"q_proj": 9}}, "found: 9; allowed: at most 8"),
}


@pytest.mark.parametrize("kind", REFUSED_KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's own, for some of these
def test_what_peft_can_save_and_we_do_not_serve(base, load, kind, tmp_path):
    config, message = REFUSED_KINDS[kind]
    save_adapter(base, tmp_path, **config)
    manager = load(max_num_loras=1, max_lora_rank=8)
    with pytest.raises(UnsupportedAdapterError, match=message):
        manager.load_adapter(str(tmp_path))
    assert manager.loras == []


REFUSED_FILES = {
    "other_method": ({"config": {"peft_type": "IA3"}}, UnsupportedAdapterError, "peft_type='IA3'"),
    "lora_bias": ({"config": {"lora_bias": True}}, UnsupportedAdapterError, "lora_bias=True"),
    "head": ({"layer": "lm_head", "shape": (99, 32)}, UnsupportedAdapterError, "lm_head is no linear layer"),
    "unknown_entry": ({"config": {"use_later_idea": {"x": 1}}}, UnsupportedAdapterError, "use_later_idea="),
    "rank_true": ({"config": {"r": True}}, CorruptCheckpointError, "not sound .found: .*r"),
    "rank_of_nothing": ({"config": {"r": 0}}, CorruptCheckpointError, "not sound .found: .*r"),
    "alpha_of_nan": ({"config": {"lora_alpha": math.nan}}, CorruptCheckpointError, "lora_alpha"),
    "no_pattern": ({"config": {"alpha_pattern": {"(": 1}}}, CorruptCheckpointError, r"invalid regular .*found: '\('"),
    "no_number": ({"config": {"rank_pattern": {"a{99999999999}": 1}}}, CorruptCheckpointError, "invalid regular"),
    "deep_pattern": ({"config": {"rank_pattern": {"(" * 499 + ")" * 499: 1}}}, CorruptCheckpointError, "invalid reg"),
    "other_rank": ({"rank": 5}, CorruptCheckpointError, r"q_proj: A \[5, 32\], B \[32, 5\]; allowed: A \[4, in"),
    "other_rank_of_b": (
        {"tensors": lambda t: {n: v[:, :3].contiguous() if "_B" in n else v for n, v in t.items()}},
        CorruptCheckpointError,
        r"B \[32, 3\]",
    ),
    "no_b": ({"tensors": lambda t: dict(list(t.items())[:1])}, CorruptCheckpointError, r"A \[4, 32\]; allowed"),
    "nothing": ({"tensors": lambda t: {}}, UnsupportedAdapterError, "other tensors than the A and B"),
    "stranger": ({"tensors": lambda t: {**t, "other": torch.ones(2)}}, UnsupportedAdapterError, "found: other"),
    "convolution": (
        {"tensors": lambda t: {n: v[..., None] for n, v in t.items()}},
        UnsupportedAdapterError,
        "q_proj.lora_A",
    ),
    "integers": ({"tensors": lambda t: {n: v.int() for n, v in t.items()}}, UnsupportedAdapterError, "q_proj.lora_A"),
    "norm": ({"layer": "model.norm"}, UnsupportedAdapterError, "model.norm is no linear layer"),
    "merged_layer": ({"layer": "model.layers.0.self_attn.qkv_proj.merged"}, UnsupportedAdapterError, "is no linear"),
    "headless_model": ({"layer": "layers.0.self_attn.q_proj"}, UnsupportedAdapterError, "layers.0.self_attn.q_proj is"),
    "larger_model": ({"shape": (64, 32)}, UnsupportedAdapterError, r"is for \[64, 32\] instead of \[32, 32\]"),
    "more_layers": ({"layer": "model.layers.3.mlp.up_proj"}, UnsupportedAdapterError, "up_proj is no linear layer"),
}


@pytest.mark.parametrize("kind", REFUSED_FILES)
def test_files_that_are_refused(load, kind, tmp_path):
    options, error, message = REFUSED_FILES[kind]
    manager = load(max_num_loras=1, max_lora_rank=8)
    path = write(tmp_path, **options)
    with pytest.raises(error, match=message):
        manager.load_adapter(path)
    assert manager.loras == []


def test_an_adapter_of_no_name(load):
    manager = load(max_num_loras=1, max_lora_rank=8)
    for name in (5, None, 10**5000, ["a"], {"a": 1}, b"a", object(), "\ud800", "a\0b", "~\0", "", "x" * 10**6):
        with pytest.raises(ModelNotFoundError) as raised:
            manager.load_adapter(name)
        assert len(str(raised.value).encode(errors="surrogatepass")) < 1000
        with pytest.raises(AdapterNotFoundError) as raised:
            manager.unload_adapter(name)
        assert len(str(raised.value).encode(errors="surrogatepass")) < 1000
    assert manager.loras == []


# What people write, and the names of layers that it is for; the first two also as PEFT's `target_modules`.
REAL_PATTERNS = {
    r".*\.(q_proj|v_proj)$": "model.layers.{}.self_attn.q_proj",
    r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$": "decoder.block.{}.layer.1.EncDecAttention.q",
    r"model\.layers\.\d+\.self_attn\.q_proj": "model.layers.{}.self_attn.q_proj",
    r"model\.layers\.(?:[0-9]|[1-9][0-9]+)\.[^.]+\.[qkv]_proj": "model.layers.{}.self_attn.v_proj",
    r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)": (
        "model.language_model.layers.{}.mlp.down_proj"
    ),
    r"layers\.\d+\.mlp\.(?:(?:gate|up)_proj|down_?proj)": "model.layers.{}.mlp.down_proj",
}


@pytest.mark.parametrize("pattern", REAL_PATTERNS)
def test_patterns_of_real_adapters(pattern, tmp_path):
    def many(_):
        names = [REAL_PATTERNS[pattern].format(index) for index in range(144)]
        a = {f"{PREFIX}{name}.lora_A.weight": torch.ones(4, 2) for name in names}
        return a | {f"{PREFIX}{name}.lora_B.weight": torch.ones(2, 4) for name in names}

    config = {"r": 2, "rank_pattern": {"other": 3, pattern: 4}, "alpha_pattern": {pattern: 2}}
    lora = open_adapter(write(tmp_path, config, many))
    assert len(lora.layers) == 144
    assert {weights.scaling for weights in lora.layers.values()} == {0.5}


# Python's own `re` takes from seconds to ages for most of these.
INVOLVED_PATTERNS = {
    "repeated_group": ("(.+)+!", Q_PROJ),
    "repeated_group_with_spaces": ("(?x:(a+) +!)", "a" * 28),
    "repetitions_on_a_long_name": (".*.*.*!", "a." * 199 + "a"),
    "nested_look_ahead": ("(?=.*(?=.*(?=.*!)))", "a." * 199 + "a"),
    "lazy_options": ("a??" * 28 + "!", "a" * 28),
    "options_of_classes": ("[(]?" * 28 + "[(]" * 28 + "!", "(" * 28),
}
# And these regex cannot do in time either.
ENDLESS_PATTERNS = {
    "alternatives": ("(a|a)" * 27 + "!", "a" * 28),
    "alternatives_without_capture": ("(?:a|a)" * 27 + "!", "a" * 28),
    "alternatives_outside": ("a)" + "(a|a)" * 26 + "(!", "a" * 28),
}


@pytest.mark.parametrize("name", INVOLVED_PATTERNS)
def test_involved_patterns_are_matched(name, tmp_path):
    """None of them matches the layer's name: its rank and its alpha are the config's own."""
    pattern, layer = INVOLVED_PATTERNS[name]
    config = {"rank_pattern": {pattern: 1}, "alpha_pattern": {pattern: 1}}
    (weights,) = open_adapter(write(tmp_path, config, layer=layer)).layers.values()
    assert weights.a.shape[0] == 4


@pytest.mark.parametrize("name", ENDLESS_PATTERNS)
@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_endless_patterns_are_refused(name, setting, tmp_path, monkeypatch):
    monkeypatch.setattr(layer_patterns, "_MAX_SECONDS", 0.2)
    pattern, layer = ENDLESS_PATTERNS[name]
    with pytest.raises(UnsupportedAdapterError, match=f"the {setting} of .* too involved .found: .*a.a.*0.2 seconds"):
        open_adapter(write(tmp_path, {setting: {"other": 1, pattern: 1}}, layer=layer))


@pytest.mark.parametrize(
    "patterns", [{f"{index}.*": 1 for index in range(10_000)}, {f"(a|a|{index})" * 10: 1 for index in range(200)}]
)
def test_patterns_that_are_slow_together_are_refused(patterns, tmp_path, monkeypatch):
    monkeypatch.setattr(layer_patterns, "_MAX_SECONDS", 0.05)
    with pytest.raises(UnsupportedAdapterError, match="too involved"):
        open_adapter(write(tmp_path, {"rank_pattern": patterns}, layer="a" * 30))


def test_a_long_pattern_is_refused(tmp_path):
    with pytest.raises(UnsupportedAdapterError, match=r"too involved .*1000 characters"):
        open_adapter(write(tmp_path, {"rank_pattern": {"a" * 1001: 1}}))


def test_files_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(ModelNotFoundError, match="neither a folder nor a name on the Hub"):
        open_adapter("no such thing")
    with pytest.raises(ModelNotFoundError, match=r"has no adapter_config\.json"):
        open_adapter(str(tmp_path))
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    write(tmp_path)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    with pytest.raises(CorruptCheckpointError, match="not a whole safetensors file"):
        open_adapter(str(tmp_path))
    weights.unlink()
    with pytest.raises(ModelNotFoundError, match=r"has no adapter_model\.safetensors"):
        open_adapter(str(tmp_path))
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UnsafeCheckpointError, match=r"adapter_model\.bin"):
        open_adapter(str(tmp_path))
    for text in ("{", "[1]", "[" * 100_000, " " * (9 << 20)):
        config.write_text(text)
        with pytest.raises(CorruptCheckpointError, match="JSON"):
            open_adapter(str(tmp_path))


def test_names_are_unique_and_an_unloaded_one_is_free(load, tmp_path):
    path = write(tmp_path)
    manager = load(lora_paths=[f"a={path}"])
    with pytest.raises(InvalidSettingError, match="loaded already"):
        manager.load_adapter(f"a={path}")
    manager.load_adapter(path)
    assert manager.loras == ["a", path]
    manager.unload_adapter("a")
    manager.load_adapter(f"a={path}")
    assert manager.is_lora("a")
    assert not manager.is_active_lora("a")


def test_settings_left_open_follow_the_adapters(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", {"r": 6}, rank=6)
    found = resolve_lora_config(LoRAConfig(lora_paths=[a, tmp_path / "b"]))
    assert (found.lora_paths, found.max_num_loras, found.max_lora_rank) == ((a, b), 2, 6)
    found = resolve_lora_config(LoRAConfig(lora_paths=a, max_num_loras=5))
    assert (found.lora_paths, found.max_num_loras, found.max_lora_rank) == ((a,), 5, 4)
    assert resolve_lora_config(LoRAConfig(max_lora_rank=3)).max_num_loras == 1
    with pytest.raises(InvalidSettingError, match="max_num_loras"):
        LoRAConfig(max_num_loras=0)


def test_an_adapter_with_two_names_for_one_layer_is_refused(load, tmp_path):
    """Of weights that a plugin renames to the same layer, none is left out in silence."""

    def twice(tensors):
        return {**tensors, **{name.replace("q_proj", "k_proj"): tensor.clone() for name, tensor in tensors.items()}}

    manager = load(max_num_loras=1, max_lora_rank=8)
    manager._rename = lambda tensors: {f"{Q_PROJ}.weight": next(iter(tensors.values()))}
    with pytest.raises(UnsupportedAdapterError, match="is there twice"):
        manager.load_adapter(write(tmp_path, tensors=twice))


PROGRAM = """
import json, sys
from pipezoo_core.lora import open_adapter
lora = open_adapter(sys.argv[1])
sums = {name: weights.b.load().sum().item() for name, weights in lora.layers.items()}
print(json.dumps([lora.name, lora.rank, sums]))
"""


@pytest.mark.slow
def test_an_adapter_from_the_hub(tmp_path):
    """Only its two files are fetched; the client reads its settings when imported, hence the process of its own."""
    folder = tmp_path / "adapter"
    write(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with serving() as hub:
        hub.repositories["org/adapter"] = Repository({**files, "adapter_model.bin": b"pickle", "README.md": b"x"})
        command = [sys.executable, "-W", "error", "-c", PROGRAM, "sql=org/adapter"]
        environment = hub.client_environment(tmp_path / "cache")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert hub.downloads() == sorted(files)
    assert json.loads(done.stdout) == ["sql", 4, {Q_PROJ: 128.0}]
