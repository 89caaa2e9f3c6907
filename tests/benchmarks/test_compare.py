"""The benchmark suite, timings apart: what it asks of an engine, the models it makes, and a run over two of them."""

import json
import random
import sys
import time
from dataclasses import replace

import compare
import models
import peers
import pytest
import torch
import workloads
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from pipezoo import registry
from pipezoo_core.request import TextGenerationRequest


class Recorder:
    """An engine that takes 20 µs for a token, and remembers what it was asked."""

    def __init__(self):
        self.prompts = []

    def generate(self, prompts, num_tokens):
        self.prompts.append(prompts)
        time.sleep(20e-6 * num_tokens)
        return [[0] * num_tokens for _ in prompts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "FOLDER", folder)
        models.safetensors_folder("tiny")
        yield folder


def test_no_prompt_is_given_twice_and_figures_have_the_shapes_they_name():
    asked = {}
    for figure, work in workloads.FIGURES.items():
        work(engine := Recorder(), random.Random(figure))
        asked[figure] = engine.prompts
    every = [tuple(prompt) for figure in asked.values() for prompts in figure for prompt in prompts]
    assert len(set(every)) == len(every)
    assert {len(prompt) for [prompt] in asked["prefill 512 tok/s"]} == {512}
    assert [len(prompts) for prompts in asked["decode B=8 tok/s"]] == [8, 8, 8]
    [shared] = asked["shared prefix s"]
    assert len({tuple(prompt[:1024]) for prompt in shared}) == 1
    assert len({prompt[1024] for prompt in shared}) > 1


def test_an_engine_that_answers_too_shortly_is_not_timed():
    class Short(Recorder):
        def generate(self, prompts, num_tokens):
            return super().generate(prompts, num_tokens - 1)

    with pytest.raises(RuntimeError, match="not 3 tokens for each of 1 prompts: \\[2\\]"):
        workloads.seconds(Short(), [[1, 2]], 3)


@pytest.mark.slow
@pytest.mark.parametrize(("type_name", "tolerance"), [("bf16", 0), ("q4_0", 2e-2)])
def test_a_gguf_file_has_the_weights_of_the_folder(folder, type_name, tolerance):
    """As transformers reads it, which reverses the order of q and k by a code of its own."""
    path = models.gguf_file("tiny", type_name)
    read = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).state_dict()
    written = load_file(folder / "tiny/safetensors/model.safetensors")
    assert read.keys() == written.keys()
    for name, weights in written.items():
        torch.testing.assert_close(read[name], weights.float(), rtol=0, atol=tolerance)


SMALL = {
    "vocab_size": 49200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_experts": 6,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "d_model": 64,
    "n_layers": 2,
    "n_heads": 4,
}


@pytest.fixture(params=["qwen3-0.6b", "gemma3-1b", "moe-2b", "mpt-1b"])
def small(request, folder, monkeypatch):
    """The name of a model like one of those that are measured, with small sizes."""
    shape = models.SHAPES[request.param]
    values = {key: SMALL.get(key, value) for key, value in shape.values.items()}
    monkeypatch.setitem(models.SHAPES, small := f"small-{request.param}", replace(shape, values=values))
    return small


@pytest.mark.slow
def test_all_engines_of_a_shape_get_the_same_model(small):
    """A GGUF file answers as the folder does; MPT's, which neither pipezoo nor transformers reads, has its tensors."""
    source, path = models.safetensors_folder(small), models.gguf_file(small, "bf16")
    prompt = TextGenerationRequest(prompt=list(range(1000, 1040)))
    with registry.load(source, dtype="float32", device="cpu") as llm:
        [expected] = llm.generate(prompt, max_new_tokens=8, temperature=0, ignore_eos=True)
    if "mpt" in small:
        written = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
        read = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
        assert len(read) == len(written)
        by_rows = read["blk.1.attn_qkv.weight"]
        found = dequantize(by_rows.data, by_rows.tensor_type)
        assert (found == written["transformer.blocks.1.attn.Wqkv.weight"].numpy()).all()
        return
    with registry.load(path, dtype="float32", device="cpu") as llm:
        [found] = llm.generate(prompt, max_new_tokens=8, temperature=0, ignore_eos=True)
    assert found.tokens == expected.tokens


def test_the_table_says_how_many_times_better_pipezoo_is(capsys):
    figures = {
        "pipezoo": {"load s": {"median": 2.0}, "decode B=1 tok/s": {"median": 30.0}},
        "max": {"load s": {"median": 5.0}, "decode B=1 tok/s": {"median": 20.0}},
    }
    compare.print_table(figures, {"vllm": "not installed"})
    _, load, decode, reason = capsys.readouterr().out.splitlines()
    assert load.split() == ["load", "s", "2.0", "5.0", "2.50", "x"]
    assert decode.split()[-2:] == ["1.50", "x"]
    assert reason == "vllm: not installed"


@pytest.mark.slow
@pytest.mark.alone
def test_a_run_of_two_engines_with_peers_that_cannot(folder, tmp_path, monkeypatch, capsys):
    """One peer is not installed, one cannot do the dtype, and one breaks when it is imported."""
    monkeypatch.setattr(compare, "ENVIRONMENTS", tmp_path)
    for name in ("max", "llamacpp"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "python").symlink_to(sys.executable)
    command = "compare.py --model tiny --dtype bfloat16 --rounds 2 --figures shared prefill"
    monkeypatch.setattr("sys.argv", command.split())
    compare.main()
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["unavailable"] == {
        "vllm": "not installed; try: python benchmarks/peers/install.py vllm",
        "openvino": "not installed; try: python benchmarks/peers/install.py openvino",
        "max": "cannot do bfloat16, only float32",
        "llamacpp": "failed: ModuleNotFoundError: No module named 'llama_cpp'",
    }
    assert list(result["figures"]) == ["pipezoo", "pipezoo_torch", "pipezoo_fallback", "transformers"]
    for figures in result["figures"].values():
        assert list(figures)[2:-1] == ["prefill 512 tok/s", "prefill 2048 tok/s", "shared prefix s"]
        for values in figures.values():
            assert 0 < values["min"] <= values["median"] <= values["max"]
        assert figures["peak memory MB"]["min"] > 100  # torch alone is more
    assert (result["rounds"], result["machine"]["cores"]) == (2, peers.NUM_THREADS)
    assert "pipezoo" in table[0]
