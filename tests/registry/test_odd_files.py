"""Files that are odd and sound: they load, and what they compute is what transformers computes."""

import json
import os
import shutil
import sys

import pytest
import torch
from gguf_files import write_llama_gguf, write_parts
from safetensors.torch import load_file, save_file
from tiny_models import make_llama
from transformers import AutoModelForCausalLM

from pipezoo import registry
from pipezoo_core.errors import (
    CorruptCheckpointError,
    MissingShardError,
    UnsupportedCheckpointError,
    UnsupportedTokenizerError,
)
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import find_safetensors, open_gguf, open_safetensors

SETTINGS = {"dtype": "float32", "device": "cpu", "page_size": 8, "kv_cache_memory": "4MiB"}
PROMPT = [5, 40, 77]
INTEGERS = [
    torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
]  # fmt: skip
INDEX = "model.safetensors.index.json"


def answer(source):
    request = TextGenerationRequest(prompt=PROMPT)
    llm = registry.load(source, **SETTINGS)
    return llm.generate(request, temperature=0.0, max_new_tokens=8, ignore_eos=True)[0].tokens


def of_transformers(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor([PROMPT])
    with torch.no_grad():
        for _ in range(8):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens[0, len(PROMPT) :].tolist()


@pytest.fixture
def folder(of_each_plugin, tmp_path):
    return shutil.copytree(of_each_plugin[1], tmp_path / "model")


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("holds", ["another head", "the head twice", "only the head", "only the embedding"])
def test_a_tied_head_is_what_the_file_holds(folder, holds):
    edit_config(folder, tie_word_embeddings=True)

    def change(tensors):
        name = next(name for name in tensors if name.endswith(("embed_tokens.weight", "wte.weight")))
        embedding = tensors[name]
        tensors["lm_head.weight"] = embedding.clone() if holds != "another head" else embedding.flip(0).contiguous()
        if holds == "only the head":
            del tensors[name]
        if holds == "only the embedding":
            del tensors["lm_head.weight"]

    rewrite(folder, change)
    assert answer(folder) == of_transformers(folder)


def test_tables_of_rope_are_passed_over(folder):
    expected = answer(folder)
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert answer(folder) == expected


BUFFERS = {
    "model.embeddings.position_ids": torch.arange(16).view(1, 16),
    "model.layers.0.self_attn.bias": torch.ones(1, 1, 8, 8).tril().bool(),
    "model.layers.0.self_attn.mask": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
    "model.layers.0.self_attn.masked_bias": torch.tensor(-1e4),
    "model.layers.0.self_attn.rotary_emb.cos_cached": torch.ones(1, 1, 8, 4),
    "num_batches_tracked": torch.tensor(3),
    **{f"buffer.{str(kind).removeprefix('torch.')}": torch.ones(10_000, 3, dtype=kind) for kind in INTEGERS},
}


@pytest.mark.parametrize("encoding", ["float32", "auto"])
def test_buffers_that_no_module_wants_are_passed_over(folder, encoding):
    """They are most of the file's numbers, and change neither the answer nor the precision."""
    expected = answer(folder)
    rewrite(folder, lambda tensors: tensors.update(BUFFERS))
    assert registry.plan(folder, **{**SETTINGS, "dtype": encoding}).pipeline_config.encoding == "float32"
    assert answer(folder) == expected


def quantized_to(kind, name, tensors):
    """As bitsandbytes has it: the weight's name, and scales beside it."""
    weight = tensors[name]
    tensors[name] = weight.mul(10).to(kind)
    tensors[f"{name}.scale"] = torch.ones(len(weight))


@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_integers_in_place_of_weights_are_refused(folder, kind):
    name = next(name for name in load_file(folder / "model.safetensors") if name.endswith("proj.weight"))
    rewrite(folder, lambda tensors: quantized_to(kind, name, tensors))
    with pytest.raises(UnsupportedCheckpointError, match=rf"integers \(found: {name}: {kind}"):
        answer(folder)


def test_weights_that_are_missing_beside_integers_are_refused(folder):
    """As GPTQ has it: other names, and no weight."""
    name = next(name for name in load_file(folder / "model.safetensors") if name.endswith("proj.weight"))
    rewrite(folder, lambda tensors: tensors.update({f"{name[:-6]}qweight": tensors.pop(name).int()}))
    with pytest.raises(UnsupportedCheckpointError, match=r"qweight: torch.int32.*No quantization_config"):
        answer(folder)


@pytest.mark.parametrize("kind", INTEGERS[:4], ids=str)
def test_integers_in_a_gguf_file(tmp_path, kind):
    model = make_llama(vocab_size=259)
    expected = answer(write_llama_gguf(tmp_path / "plain.gguf", model))
    extra = {"buffer": torch.arange(-8, 56).view(2, 32).to(kind).numpy()}
    path = write_llama_gguf(tmp_path / "more.gguf", model, extra_tensors=extra)
    assert answer(path) == expected
    read = open_gguf(path).weights["buffer"]
    assert read.dtype is kind
    assert read.load().tolist() == extra["buffer"].tolist()


def test_whole_weights_load_beside_an_old_index_and_quantization_config(folder):
    expected = answer(folder)
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    assert answer(folder) == expected == of_transformers_without(folder, "quantization_config")


def of_transformers_without(folder, name):
    edit_config(folder, **{name: None})
    return of_transformers(folder)


def write_shards(folder, weight_map, **shards):
    folder.mkdir(exist_ok=True)
    for name, tensors in shards.items():
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_the_index_decides_what_belongs_to_a_checkpoint(tmp_path):
    one, two = {"a": torch.ones(1), "x": torch.ones(1)}, {"a": torch.zeros(1), "b": torch.ones(1)}
    write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"}, one=one, two=two)
    paths = find_safetensors(tmp_path)
    weights = open_safetensors(paths)
    assert {name: tensor.load().item() for name, tensor in weights.items()} == {"a": 1.0, "b": 1.0}
    write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"})
    with pytest.raises(CorruptCheckpointError, match=r"not in the files where .*found: c"):
        open_safetensors(paths)
    (tmp_path / INDEX).unlink()
    with pytest.raises(CorruptCheckpointError, match="'a' is in another file, too"):
        open_safetensors(paths)


ODD_NAME = "a b\n%s{} é[x]*?='\"$\t"


def test_a_path_of_odd_letters(tiny_folder, tiny_gguf, tmp_path, monkeypatch):
    expected = answer(tiny_gguf)
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(tiny_folder, tmp_path / ODD_NAME / "model")
    assert answer(folder) == answer(f"{ODD_NAME}/model") == expected
    file = shutil.copy(tiny_gguf, tmp_path / ODD_NAME / "model.gguf")
    assert answer(file) == answer(file.parent) == answer(f"{ODD_NAME}/model.gguf") == expected


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode text elsewhere")
def test_a_path_that_is_no_unicode_text(tiny_folder, tiny_gguf, tmp_path):
    odd = tmp_path / os.fsdecode(b"\xff\xc3")
    odd.mkdir()
    assert answer(shutil.copy(tiny_gguf, odd / "model.gguf")) == answer(tiny_gguf)
    with pytest.raises(UnsupportedTokenizerError, match="surrogates"):  # of the library, which is not ours
        answer(shutil.copytree(tiny_folder, odd / "model"))


@pytest.fixture
def parts(tmp_path):
    """A model in three parts, and the whole of it."""
    model = make_llama(vocab_size=259)
    whole = write_llama_gguf(tmp_path / "whole.gguf", model)
    return write_parts(tmp_path / "parts", model, whole), whole


def test_a_gguf_model_in_parts_loads_from_its_folder_and_any_part(parts):
    folder, whole = parts
    expected = answer(whole)
    assert answer(folder) == expected
    found = open_gguf(folder / "m-00002-of-00003.gguf")
    assert found.weights.keys() == open_gguf(whole).weights.keys()
    assert found.metadata["llama.block_count"] == 3
    (folder / "m-00002-of-00003.gguf").unlink()
    for source in (folder, folder / "m-00001-of-00003.gguf"):
        with pytest.raises(MissingShardError, match=r"m-00002-of-00003\.gguf"):
            registry.plan(source, **SETTINGS)


def test_a_part_of_another_name_or_number_is_refused(parts):
    folder, _ = parts
    shutil.copy(folder / "m-00001-of-00003.gguf", folder / "renamed.gguf")
    with pytest.raises(UnsupportedCheckpointError, match="one of 3 parts"):
        open_gguf(folder / "renamed.gguf")
    shutil.copy(folder / "m-00003-of-00003.gguf", folder / "m-00002-of-00003.gguf")
    with pytest.raises(CorruptCheckpointError, match="not the part"):
        open_gguf(folder / "m-00001-of-00003.gguf")
