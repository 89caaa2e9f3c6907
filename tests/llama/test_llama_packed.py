"""Quantized GGUF files that run as they lie: what is computed, in whatever way, is of the file's own numbers."""

import logging

import pytest
import torch
from families import PROMPTS as IDS
from families import assert_near, assert_runs_as_it_lies, expected_logits, load_gguf, tokens_of
from gguf import GGMLQuantizationType as Type
from gguf_blocks import as_q4_k_m, as_quantized
from gguf_files import TOKENS, gguf_name, write_llama_gguf
from lora.peft_adapters import merged, save_adapter
from tiny_models import logits_of, make_llama

from pipezoo import registry
from pipezoo.cli.info import tables
from pipezoo_core.config import LinearName, LoRAConfig, SupportedEncoding
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.native import HUGE_PAGE, NativeKernels
from pipezoo_core.testing.ranks import joined
from pipezoo_core.weights import open_gguf
from pipezoo_llama.plugin import pipezoo_architectures

pytestmark = pytest.mark.matrix

PACKED = SupportedEncoding.packed
SETTINGS = {"device": "cpu", "page_size": 32, "kv_cache_memory": "8MiB"}
PROMPTS = ["hello there", "he", "a longer prompt than the others, with a few more bytes", "hhh"]


@pytest.fixture(autouse=True)
def _kernels():
    if obstacle := NativeKernels(torch.device("cpu"), torch.bfloat16).obstacle:
        pytest.skip(obstacle)


def make(**changes):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    return make_llama(vocab_size=len(TOKENS), **{**sizes, **changes})


def write(path, reference, types):
    """Writes a model, which has the numbers of the file afterwards."""
    write_llama_gguf(path, reference, types)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.ndim == 2:
                kind = types(gguf_name(name)) if callable(types) else types
                parameter.copy_(torch.from_numpy(as_quantized(parameter.numpy(), kind)))
    return path


def load(path, **settings):
    return load_gguf(*pipezoo_architectures(), path, PACKED, **settings)


@pytest.mark.parametrize("linear", [LinearName.native, LinearName.torch])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_mixed_types_are_those_of_the_dequantized_numbers(tied, linear, tmp_path):
    reference = make(tie_word_embeddings=tied, attention_bias=True)
    path = write(tmp_path / "m.gguf", reference, as_q4_k_m)
    assert_near(reference, load(path, linear=linear))


@pytest.mark.parametrize("type_", [Type.Q4_0, Type.Q4_1, Type.Q5_K, Type.Q8_0])
def test_logits_of_each_type(type_, tmp_path):
    reference = make()
    assert_near(reference, load(write(tmp_path / "m.gguf", reference, type_)))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("packed") / "m.gguf", make(), as_q4_k_m)


def test_auto_runs_a_file_as_it_lies(path):
    assert_runs_as_it_lies(path, PROMPTS, **SETTINGS)


def test_an_explicit_dtype_dequantizes(path):
    plan = registry.plan(path, dtype="bfloat16", **SETTINGS)
    assert plan.pipeline_config.stored_types == {}
    assert plan.memory.weights > 2 * registry.plan(path, **SETTINGS).memory.weights


def test_the_plan_counts_what_is_packed(path):
    file = open_gguf(path)
    stored = sum(tensor.stored.bytes.num_elements for tensor in file.weights.values() if tensor.stored)
    planned = registry.plan(path, **SETTINGS).memory.weights
    assert stored <= planned + 2**21
    assert planned < 1.1 * stored + HUGE_PAGE + 2**16


def test_the_plan_knows_a_gate_of_another_type(path, tmp_path):
    """Gate and up are then two products: what the plan says of memory and of replayed steps is of those."""
    odd = write(tmp_path / "m.gguf", make(), lambda name: Type.Q6_K if "ffn_up" in name else as_q4_k_m(name))
    of_even, of_odd = (registry.plan(file, max_batch_tokens=1024, **SETTINGS) for file in (path, odd))
    assert of_odd.memory.activations >= of_even.memory.activations + 2 * 512 * 1024 * 2
    told = of_odd.architecture.pipeline_model.step_outlook(of_odd.pipeline_config, of_odd.files.huggingface_config)
    with registry.load(odd, **SETTINGS) as pipeline:
        tokens_of(pipeline, ["hello there"])
        assert told.operations == pipeline.model._forward.operations != ()


def test_without_kernels_auto_dequantizes(path):
    plan = registry.plan(path, linear="torch", **SETTINGS)
    assert plan.pipeline_config.encoding in (SupportedEncoding.bfloat16, SupportedEncoding.float32)
    assert registry.plan(path, linear="torch", dtype="packed", **SETTINGS).pipeline_config.encoding is PACKED


def test_packed_is_of_quantized_files_only(tmp_path):
    plain = write_llama_gguf(tmp_path / "m.gguf", make())
    with pytest.raises(InvalidSettingError, match="no weight can stay as it is"):
        registry.plan(plain, dtype="packed", **SETTINGS)
    assert registry.plan(plain, **SETTINGS).pipeline_config.encoding is not PACKED


def test_types_without_a_packed_form_are_dequantized_and_named(tmp_path, caplog):
    reference = make()

    def types(name):
        return Type.Q5_0 if "attn_k" in name or "ffn_down" in name else Type.Q4_K

    path = write(tmp_path / "m.gguf", reference, types)
    with caplog.at_level(logging.INFO, "pipezoo"):
        model = load(path)
    assert_near(reference, model)
    num_layers = reference.config.num_hidden_layers
    assert f"{2 * num_layers} of Q4_K, {2 * num_layers} of Q5_0" in caplog.text  # q and v are one layer with k


def shown(path, **settings):
    """What `pipezoo info` shows of a file's quantized tensors."""
    found = tables(registry.resolve(path), registry.plan(path, **SETTINGS, **settings))
    (table,) = (table for table in found if table.title == "quantized tensors of the file")
    names, fates = (map(str, column.cells) for column in table.columns)
    return dict(zip(names, fates, strict=True))


def test_info_names_what_becomes_of_each_type(tmp_path):
    reference = make()
    num_layers = reference.config.num_hidden_layers
    path = write(tmp_path / "m.gguf", reference, lambda name: Type.Q5_0 if "attn_k" in name else Type.Q4_K)
    packed, beside = "kept packed, 4.625 bits per number", "dequantized to bfloat16: no layer computes it packed"
    assert shown(path) == {
        f"Q4_K, {6 * num_layers + 2} tensors": f"{packed}; some {beside}",
        f"Q5_0, {num_layers} tensors": "dequantized to bfloat16: there is no packed form of this type",
    }
    assert set(shown(path, dtype="float32").values()) == {"dequantized: dtype is float32"}
    assert set(shown(path, dtype="int8").values()) == {
        "dequantized: dtype is int8, to which the numbers are rounded again"
    }


def test_adapters_add_to_packed_products(tmp_path):
    reference = make()
    path = write(tmp_path / "m.gguf", reference, as_q4_k_m)
    save_adapter(reference, tmp_path / "one", r=5)
    adapted = merged(reference, tmp_path / "one")
    model = load(path, lora=LoRAConfig(lora_paths=f"one={tmp_path / 'one'}"))
    assert (expected_logits(reference, IDS[0]) - expected_logits(adapted, IDS[0])).norm() > 5
    for name, oracle in (("one", adapted), (None, reference)):
        (found,) = logits_of(model, IDS[:1], loras=[name])
        expected = expected_logits(oracle, IDS[0])
        assert (found - expected).norm() < 0.15 * expected.norm()


def test_two_ranks_divide_blocks_or_dequantize(tmp_path, caplog):
    """Each has 256 numbers of `down_proj`'s rows, a block, and 128 of `o_proj`'s, half of one."""
    reference = make()
    path = write(tmp_path / "m.gguf", reference, as_q4_k_m)

    def load_part(group):
        return load(path, group=group)

    with (
        caplog.at_level(logging.INFO, "pipezoo"),
        joined(tmp_path, 2, lambda group: load_part(group).serve()) as group,
    ):
        assert_near(reference, load_part(group))
    assert f"{reference.config.num_hidden_layers} of Q4_K\n" in caplog.text
