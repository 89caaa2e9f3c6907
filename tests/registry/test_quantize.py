"""`pipezoo quantize`: what it writes computes what a load with the dtype computes, bit for bit."""

import json
import shutil
import signal

import pytest
import torch
from gguf_files import TOKENS, write_llama_gguf, write_parts
from tiny_models import logits_of, make_llama, randomize
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM
from typer.testing import CliRunner

from pipezoo import registry
from pipezoo.cli.main import app
from pipezoo.loading import quantize as quantizing
from pipezoo_core.decoder import rounded_decoder
from pipezoo_core.errors import (
    CorruptCheckpointError,
    InvalidSettingError,
    UnreadableFileError,
    UnsupportedCheckpointError,
    UnsupportedModelError,
    UnwritableFileError,
)
from pipezoo_core.layers.native_product import NativeProduct
from pipezoo_core.layers.quantized import QuantizedProduct
from pipezoo_core.layers.stored import StoredWeight
from pipezoo_core.native import Form, NativeKernels
from pipezoo_core.weights import LazyTensor, Weights, open_safetensors, with_quantized
from pipezoo_core.weights.quantized.rounded import Rounded, rounded_rows, rounding_entries

SETTINGS = {"device": "cpu", "page_size": 32, "kv_cache_memory": "8MiB"}
SIZES = {"vocab_size": len(TOKENS), "hidden_size": 64, "intermediate_size": 96}
PROMPTS = [[3, 1, 2, 9], [7], [5, 5, 8, 1, 2, 3, 4]]
RUNNER = CliRunner()


def make_gpt2():
    return randomize(
        GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENS), n_embd=64, n_head=2, n_layer=2, n_positions=64))
    )


def make_mixtral():
    config = MixtralConfig(
        **SIZES, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, num_local_experts=2
    )
    return randomize(MixtralForCausalLM(config))


MODELS = {
    "llama": lambda: make_llama(**SIZES),
    "tied": lambda: make_llama(**SIZES, tie_word_embeddings=True, attention_bias=True),
    "gpt2": make_gpt2,
    "mixtral": make_mixtral,
}


@pytest.fixture
def _kernels():
    if obstacle := NativeKernels(torch.device("cpu"), torch.bfloat16).obstacle:
        pytest.skip(obstacle)


@pytest.fixture
def saved(tiny_folder, tmp_path):
    """Writes a model with a tokenizer; returns its folder."""

    def save(model):
        folder = tmp_path / "model"
        model.save_pretrained(folder)
        for path in tiny_folder.glob("tokenizer*"):
            shutil.copy(path, folder)
        return folder

    return save


def logits(model, **settings):
    with registry.load(model, **SETTINGS, **settings) as pipeline:
        return torch.cat(logits_of(pipeline.model, PROMPTS, 1)), pipeline.pipeline_config


def assert_same(source, folder, dtype, **settings):
    expected, _ = logits(source, dtype=dtype, **settings)
    found, config = logits(folder, **settings)
    assert config.encoding == "packed"
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("_kernels")
@pytest.mark.matrix
@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_a_load_with_the_dtype_computes(name, dtype, saved, tmp_path):
    source = saved(MODELS[name]())
    sizes = registry.quantize(source, tmp_path / "out", dtype=dtype)
    assert_same(source, tmp_path / "out", dtype)
    assert logits(tmp_path / "out", dtype=dtype)[1].encoding == "packed"  # and not rounded a second time
    for _ in range(2):  # packed, and taken from where that was kept
        assert_same(source, tmp_path / "out", dtype, load_cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.packed"))) == 2
    assert sizes.after < sizes.before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_without_the_kernels_it_is_dequantized_to_the_same_numbers(dtype, saved, tmp_path):
    source = saved(make_llama(**SIZES))
    registry.quantize(source, tmp_path / "out", dtype=dtype)
    expected, _ = logits(source, dtype=dtype, linear="torch")
    found, config = logits(tmp_path / "out", linear="torch")
    assert not config.encoding.is_quantized
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    again, config = logits(tmp_path / "out", dtype=dtype, linear="torch")
    assert config.encoding == dtype  # and not twice or four times the memory
    assert (again - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.usefixtures("_kernels")
def test_a_gguf_file_becomes_a_folder_with_its_tokenizer_and_ends(tmp_path):
    reference = make_llama(vocab_size=len(TOKENS), hidden_size=64, intermediate_size=96)
    path = write_llama_gguf(tmp_path / "m.gguf", reference)
    registry.quantize(path, tmp_path / "out", dtype="int8")
    assert_same(path, tmp_path / "out", "int8")
    texts = [
        registry.load(model, **SETTINGS, dtype=dtype) for model, dtype in ((path, "int8"), (tmp_path / "out", "auto"))
    ]
    answers = [llm.generate(["hello there"], max_new_tokens=8, temperature=0.0)[0] for llm in texts]
    assert answers[0].tokens == answers[1].tokens
    assert texts[0].tokenizer.eos_token_ids == texts[1].tokenizer.eos_token_ids


def test_the_sizes_of_a_gguf_model_are_those_of_the_files_that_were_opened(tmp_path, monkeypatch):
    reference = make_llama(**SIZES)
    whole = write_llama_gguf(tmp_path / "named-00002-of-00003.gguf", reference)  # which is no part
    sizes = registry.quantize(whole, tmp_path / "one", dtype="int8")
    assert sizes.before == whole.stat().st_size
    parts = write_parts(tmp_path / "parts", reference, whole)
    of_parts = registry.quantize(parts, tmp_path / "two", dtype="int8")
    assert of_parts.before == sum(path.stat().st_size for path in parts.iterdir())
    assert of_parts.after == sizes.after
    monkeypatch.setattr(quantizing, "rounded_decoder", lambda *found: [rounded_decoder(*found), whole.unlink()][0])
    with pytest.raises(UnreadableFileError, match="named-00002"):
        registry.quantize(whole, tmp_path / "three", dtype="int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "parts", "two"]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("form", [Form.plain, Form.gated, Form.wide])
def test_rows_of_a_file_are_packed_to_what_the_kernel_makes_of_floats(form, bits):
    kernels = NativeKernels(torch.device("cpu"), torch.bfloat16)
    if kernels.obstacle:
        pytest.skip(kernels.obstacle)
    weight = torch.randn(96, 160, generator=torch.Generator().manual_seed(bits)) * torch.logspace(-3, 1, 160)
    weight[3], weight[5] = 0, weight[5].abs()
    stored = stored_weight(weight, bits)
    packed = NativeProduct(kernels, stored, None, form=form).packed
    assert torch.equal(packed, NativeProduct(kernels, weight, None, bits, form).packed)
    expected = QuantizedProduct(weight, None, bits, torch.float32).dequantized(slice(None))
    assert torch.equal(stored.type.dequantize(stored.rows), expected)


def stored_weight(weight, bits):
    rows = rounded_rows(weight, bits)
    tensor = LazyTensor(tuple(rows.shape), torch.uint8, rows.__getitem__)
    made = Rounded(rounding_entries(f"int{bits}")).weight("a.weight", {f"weight_int{bits}": tensor})
    assert made.shape == tuple(weight.shape)
    return StoredWeight(made.stored.type, rows)


@pytest.mark.usefixtures("_kernels")
def test_files_are_divided_and_have_an_index(saved, tmp_path, monkeypatch):
    source = saved(make_llama(**SIZES))
    monkeypatch.setattr(quantizing, "_MAX_FILE_BYTES", 40_000)
    registry.quantize(source, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-0000*-of-0000*.safetensors"))) > 2
    assert_same(source, tmp_path / "out", "int4")


def fail(error):
    raise error


def test_nothing_is_written_over_and_nothing_is_left_of_what_ends(saved, tmp_path, monkeypatch):
    source, out = saved(make_llama(**SIZES)), tmp_path / "out"
    out.mkdir()
    with pytest.raises(UnwritableFileError, match="exists"):
        registry.quantize(source, out)
    out.rmdir()
    for error, expected in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space"), UnwritableFileError)):
        with monkeypatch.context() as patch:
            patch.setattr(quantizing, "write_safetensors", lambda *_, error=error, **__: fail(error))
            with pytest.raises(expected):
                registry.quantize(source, out)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(UnwritableFileError):
        registry.quantize(source, source / "config.json" / "out")


@pytest.fixture
def ending_signals():
    """Those that end a process, also where it was started by a program that ignores them, as nohup does."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield list(before)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_of_what_a_signal_ends(number, ending_signals, saved, tmp_path, monkeypatch):
    source = saved(make_llama(**SIZES))
    monkeypatch.setattr(quantizing, "write_safetensors", lambda *_, **__: signal.raise_signal(number))
    rmtree = shutil.rmtree

    def interrupted(*given, **named):
        for further in ending_signals:
            signal.raise_signal(further)
        rmtree(*given, **named)

    monkeypatch.setattr(quantizing.shutil, "rmtree", interrupted)
    result = RUNNER.invoke(app, ["quantize", str(source), str(tmp_path / "out")])
    assert result.exit_code == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize("name", ["nul\0x", "\ud800", "nul\0x/out"])
def test_a_name_that_no_folder_can_have(name, saved, tmp_path):
    source = saved(make_llama(**SIZES))
    with pytest.raises(UnwritableFileError, match="no folder can have such a name") as raised:
        registry.quantize(source, tmp_path / name)
    str(raised.value).encode()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_dtypes_and_models_without_layers_are_refused(saved, tmp_path):
    source = saved(make_llama(**{**SIZES, "hidden_size": 24, "intermediate_size": 40}))
    with pytest.raises(InvalidSettingError, match="cannot be rounded"):
        registry.quantize(source, tmp_path / "out", dtype="bfloat16")
    with pytest.raises(UnsupportedModelError, match="no weight that is rounded"):
        registry.quantize(source, tmp_path / "out")


def test_what_does_not_fit_is_refused_by_name(saved, tmp_path):
    source, out = saved(make_llama(**SIZES)), tmp_path / "out"
    registry.quantize(source, out)
    weights = open_safetensors([out / "model.safetensors"])

    def opened(**entries):
        return with_quantized(weights, {"quantization_config": {**rounding_entries("int4"), **entries}})

    assert opened()["model.layers.0.mlp.down_proj.weight"].shape == (64, 96)
    plain = weights["model.norm.weight"]
    for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj.weight_int8"):
        twice = Weights(weights.format, {**weights, name: plain})
        with pytest.raises(CorruptCheckpointError, match=r"down_proj\.weight is there twice"):
            with_quantized(twice, {"quantization_config": rounding_entries("int4")})
    with pytest.raises(UnsupportedCheckpointError, match="another version"):
        opened(version=2)
    with pytest.raises(CorruptCheckpointError, match="version"):
        opened(version="new")


def test_the_command_says_both_sizes(saved, tmp_path):
    source = saved(make_llama(**SIZES))
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.5}))
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    result = RUNNER.invoke(app, ["quantize", str(source), str(tmp_path / "out"), "--dtype", "int8"])
    assert result.exit_code == 0, result.output
    assert "MiB, before" in result.output
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    again = RUNNER.invoke(app, ["quantize", str(source), str(tmp_path / "out")])
    assert again.exit_code == 1
