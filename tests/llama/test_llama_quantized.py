"""Checkpoints of AWQ, GPTQ, compressed-tensors and FP8 that run as they lie, with the files' numbers."""

import json
import logging
import shutil

import pytest
import torch
from eights_files import floats, fp8_config, fp8_parts, row_floats, row_integers, row_parts, rows_config
from families import PROMPTS as IDS
from families import assert_near, assert_runs_as_it_lies, greedy_tokens, tokens_of
from gguf_files import TOKENS
from quantized_files import (
    affine,
    awq_config,
    awq_parts,
    edit_config,
    gptq_config,
    gptq_parts,
    packed_config,
    packed_parts,
    write_quantized,
)
from safetensors.torch import load_file, save_file
from tiny_models import logits_of, make_llama

from pipezoo import registry
from pipezoo.cli.info import tables
from pipezoo_core.config import KVCacheConfig, LinearName, PipelineConfig, ReturnLogits, SupportedEncoding
from pipezoo_core.errors import CheckpointMismatchError, UnsupportedCheckpointError
from pipezoo_core.native import HUGE_PAGE, NativeKernels
from pipezoo_core.session import InferenceSession
from pipezoo_core.testing.ranks import joined
from pipezoo_core.weights import find_safetensors, open_safetensors, with_quantized
from pipezoo_llama.plugin import pipezoo_architectures

pytestmark = pytest.mark.matrix

PACKED = SupportedEncoding.packed
SETTINGS = {"device": "cpu", "page_size": 32, "kv_cache_memory": "8MiB"}
KINDS = {
    "awq": (awq_config(32), awq_parts, {}),
    "gptq": (gptq_config(4, 64), gptq_parts, {"group": 64}),
    "gptq act-order": (gptq_config(4, 64, desc_act=True), gptq_parts, {"group": 64, "act_order": True}),
    "packed": (
        packed_config(4, 128, symmetric=True),
        lambda weight: packed_parts(weight, symmetric=True),
        {"group": 128, "symmetric": True, "dtype": torch.bfloat16},
    ),
    "8 bits": (
        packed_config(8, -1),
        lambda weight: packed_parts(weight, 8),
        {"bits": 8, "group": -1, "dtype": torch.bfloat16},
    ),
    "fp8 of blocks": (fp8_config([128, 128]), fp8_parts, {"by": floats, "block": (128, 128)}),
    "fp8": (fp8_config(), fp8_parts, {"by": floats}),
    "w8a8 of floats": (rows_config("float"), row_parts, {"by": row_floats}),
    "w8a8": (rows_config("int"), row_parts, {"by": row_integers}),
}


@pytest.fixture(autouse=True)
def _kernels():
    if obstacle := NativeKernels(torch.device("cpu"), torch.bfloat16).obstacle:
        pytest.skip(obstacle)


def make(**changes):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    return make_llama(vocab_size=len(TOKENS), num_hidden_layers=2, **{**sizes, **changes})


def write(folder, kind, tokenizer, plain=(), **changes):
    """Writes a quantized checkpoint; returns the model that has its numbers, and its folder."""
    config, parts_of, settings = KINDS[kind]
    by = settings.get("by", affine)
    settings = {key: setting for key, setting in settings.items() if key != "by"}
    reference = make(**changes)
    reference.save_pretrained(folder)
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder)

    def affine_of(name, values):
        return None if name in plain else by(values, **settings)

    numbers = write_quantized(folder, config, parts_of, affine_of)
    with torch.no_grad():
        for name, values in numbers.items():
            reference.get_parameter(name).copy_(values)
    return reference, folder


def load(folder, group=None, **settings):
    (architecture,) = pipezoo_architectures()
    session = InferenceSession([torch.device("cpu")] * (group.size if group else 1), group)
    paths, cache = find_safetensors(folder), KVCacheConfig(page_size=8, kv_cache_memory=2**22)
    raw = json.loads((folder / "config.json").read_text())
    degree = group.size if group else 1
    config = PipelineConfig(
        model_path=str(folder), weight_paths=paths, kv_cache=cache, tensor_parallel_degree=degree, **settings
    )
    quantization = raw.pop("quantization_config")
    weights = with_quantized(open_safetensors(paths), {"quantization_config": quantization})
    return architecture.pipeline_model(
        pipeline_config=config,
        session=session,
        huggingface_config=architecture.huggingface_config(raw),
        encoding=PACKED,
        devices=session.devices,
        kv_cache_config=cache,
        weights=weights,
        adapter=architecture.weight_adapters[weights.format],
        return_logits=ReturnLogits.ALL,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_dequantized_numbers(kind, tmp_path, tiny_folder):
    reference, folder = write(tmp_path, kind, tiny_folder, attention_bias=True)
    assert_near(reference, load(folder), 0.05 if "fp8" in kind or "floats" in kind else 0.15)


@pytest.mark.parametrize("kind", ["fp8", "w8a8"])
def test_scales_of_keys_and_values_are_passed_over(kind, tmp_path, tiny_folder, caplog):
    reference, folder = write(tmp_path, kind, tiny_folder)
    path = folder / "model.safetensors"
    scales = {f"model.layers.0.self_attn.{part}_scale": torch.tensor(0.01) for part in "kv"}
    save_file(load_file(path) | scales, path, metadata={"format": "pt"})
    with caplog.at_level(logging.INFO, "pipezoo"):
        assert_near(reference, load(folder))
    assert "scales of keys and values are passed over" in caplog.text


@pytest.mark.parametrize("kind", ["fp8 of blocks", "w8a8"])
def test_every_number_is_the_file_s(kind, tmp_path, tiny_folder):
    reference, folder = write(tmp_path, kind, tiny_folder)
    weights = with_quantized(
        open_safetensors(find_safetensors(folder)), json.loads((folder / "config.json").read_text())
    )
    for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.k_proj.weight"):
        expected, found = reference.get_parameter(name), weights[name]
        assert torch.equal(found.load(), expected)
        assert torch.equal(found.stored.type.dequantize(found.stored.bytes.load()), expected)
        assert torch.equal(found.columns(slice(0, 128)).load(), expected[:, :128])


@pytest.mark.parametrize("kind", ["gptq act-order", "awq"])
def test_logits_by_plain_torch(kind, tmp_path, tiny_folder):
    reference, folder = write(tmp_path, kind, tiny_folder, tie_word_embeddings=True)
    assert_near(reference, load(folder, linear=LinearName.torch))


@pytest.fixture(scope="module", params=["awq", "gptq act-order", "fp8 of blocks"])
def written(request, tmp_path_factory, tiny_folder):
    return write(tmp_path_factory.mktemp("quantized"), request.param, tiny_folder)


def test_auto_runs_a_checkpoint_as_it_lies(written):
    assert_runs_as_it_lies(written[1], IDS, **SETTINGS)


def test_an_explicit_dtype_dequantizes(written):
    reference, folder = written
    with registry.load(folder, dtype="float32", **SETTINGS) as pipeline:
        assert pipeline.pipeline_config.stored_types == {}
        assert tokens_of(pipeline, IDS[:2]) == [greedy_tokens(reference, prompt, 12) for prompt in IDS[:2]]


def test_without_kernels_auto_dequantizes(written):
    plan = registry.plan(written[1], linear="torch", **SETTINGS)
    assert plan.pipeline_config.encoding in (SupportedEncoding.bfloat16, SupportedEncoding.float32)


def test_the_plan_counts_what_is_packed(written):
    """Embedding and head are bfloat16, as in the plan of the plain model."""
    plan = registry.plan(written[1], **SETTINGS)
    tensors = plan.files.weights.values()
    packed = sum(tensor.stored.bytes.num_elements for tensor in tensors if tensor.stored)
    plain = sum(2 * tensor.num_elements for tensor in tensors if not tensor.stored)
    assert packed > 0
    assert 0.8 * packed + plain <= plan.memory.weights <= 1.1 * packed + plain + HUGE_PAGE + 2**16


def shown(folder, **settings):
    """What `pipezoo info` shows of a checkpoint's quantized tensors."""
    found = tables(registry.resolve(folder), registry.plan(folder, **SETTINGS, **settings))
    (table,) = (table for table in found if table.title == "quantized tensors of the file")
    names, fates = (map(str, column.cells) for column in table.columns)
    return dict(zip(names, fates, strict=True))


def test_info_names_what_becomes_of_each_type(tmp_path, tiny_folder):
    _, folder = write(tmp_path, "gptq act-order", tiny_folder)
    name = "GPTQ with 4 bits in groups of 64, columns reordered, 14 tensors"
    assert shown(folder) == {name: "kept packed, 4.375 bits per number"}
    assert shown(folder, dtype="float32") == {name: "dequantized: dtype is float32"}


def test_a_layer_with_one_plain_part_is_dequantized(tmp_path, tiny_folder, caplog):
    plain = "model.layers.0.self_attn.k_proj.weight"
    reference, folder = write(tmp_path, "awq", tiny_folder, plain=[plain])
    with caplog.at_level(logging.INFO, "pipezoo"):
        assert_near(reference, load(folder))
    assert "2 of AWQ with 4 bits in groups of 32" in caplog.text


def test_two_ranks_divide_blocks_or_dequantize(tmp_path, tiny_folder):
    for kind in ("awq", "gptq act-order", "fp8 of blocks", "w8a8 of floats"):
        reference, folder = write(tmp_path / kind, kind, tiny_folder)
        with joined(tmp_path / kind, 2, lambda group, folder=folder: load(folder, group).serve()) as group:
            assert_near(reference, load(folder, group))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_biases_of_zeros_that_no_layer_has_are_passed_over(value, tmp_path, tiny_folder):
    reference, folder = write(tmp_path, "gptq", tiny_folder)
    path = folder / "model.safetensors"
    biases = {"model.layers.1.mlp.up_proj.bias": torch.full((256,), value)}
    save_file(load_file(path) | biases, path, metadata={"format": "pt"})
    if value:
        with pytest.raises(CheckpointMismatchError, match=r"mlp.up_proj.bias"):
            load(folder)
    else:
        assert_near(reference, load(folder))


def test_biases_of_zeros_beside_weights_without_blocks_are_passed_over(tmp_path, tiny_folder):
    """Groups of 16 are dequantized."""
    reference = make()
    reference.save_pretrained(tmp_path)
    write_quantized(tmp_path, gptq_config(4, 16), gptq_parts, lambda name, values: affine(values, 4, 16))
    path = tmp_path / "model.safetensors"
    biases = {"model.layers.1.mlp.up_proj.bias": torch.zeros(256)}
    save_file(load_file(path) | biases, path, metadata={"format": "pt"})
    assert logits_of(load(tmp_path), IDS[:1])


def test_a_method_that_is_not_read_is_refused(tmp_path, tiny_folder):
    _, folder = write(tmp_path, "awq", tiny_folder)
    edit_config(folder, quantization_config={"quant_method": "hqq"})
    with pytest.raises(UnsupportedCheckpointError, match=r"by a method that is not read.*hqq"):
        registry.plan(folder, **SETTINGS)


def test_a_layer_of_another_size_is_a_mismatch(tmp_path, tiny_folder):
    _, folder = write(tmp_path, "awq", tiny_folder)
    edit_config(folder, intermediate_size=128)
    with pytest.raises(CheckpointMismatchError, match=r"mlp.down_proj.weight: \[128, 256\] -> \[128, 128\]"):
        registry.load(folder, **SETTINGS)
