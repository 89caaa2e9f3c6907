"""In fp32 on a CPU, the greedy tokens of a request do not depend on how it is run."""

import logging
import random

import pytest
from tiny_models import cache_memory

from pipezoo_core.request import TextGenerationRequest

NUM_NEW = 24
RNG = random.Random(0)
PROMPTS = [
    [RNG.randrange(250) for _ in range(length)] for length in (1, 3, 8, 9, 17, 30, 47, 64, 5, 71, 12, 33, 2, 25, 40, 16)
]


def requests(prompts):
    return [TextGenerationRequest(prompt=prompt) for prompt in prompts]


def answers(llm, prompts):
    outputs = llm.generate(requests(prompts), max_new_tokens=NUM_NEW, temperature=0.0, ignore_eos=True)
    return [output.tokens for output in outputs]


@pytest.fixture(scope="module")
def expected():
    return {}


@pytest.fixture
def alone(load_tiny, greedy, expected):
    """Each prompt alone, checked against transformers."""
    if not expected:
        llm = load_tiny(enable_prefix_caching=False)
        for i, prompt in enumerate(PROMPTS):
            expected[i] = answers(llm, [prompt])[0]
            assert expected[i] == greedy(prompt, NUM_NEW)
    return list(expected.values())


def test_in_a_batch_of_mixed_lengths(load_tiny, alone):
    assert answers(load_tiny(), PROMPTS) == alone


def test_with_chunked_prefill(load_tiny, alone):
    assert answers(load_tiny(max_batch_tokens=16), PROMPTS) == alone


def test_after_preemption(load_tiny, alone, caplog):
    llm = load_tiny(kv_cache_memory=cache_memory(20), max_length=120)
    assert llm.kv_managers[0].total_num_pages == 20
    with caplog.at_level(logging.INFO, "pipezoo"):
        assert answers(llm, PROMPTS) == alone
    assert llm.scheduler.num_preemptions > 0
    assert sum("preempted" in line for line in caplog.messages) == llm.scheduler.num_preemptions


def test_on_a_prefix_hit(load_tiny, alone):
    llm = load_tiny()
    answers(llm, PROMPTS)
    before = llm.kv_managers[0].metrics.prefix_hit_tokens
    assert answers(llm, PROMPTS) == alone
    assert llm.kv_managers[0].metrics.prefix_hit_tokens > before + 8


def test_with_reference_attention(load_tiny, alone):
    assert answers(load_tiny(attention="reference"), PROMPTS[:4]) == alone[:4]
