"""Drafts change no answer, whether they come true or not, and whatever a request asks for beside them."""

import random

import pytest
from tiny_models import cache_memory

from pipezoo_core.drafting import Drafter, Guess
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams

RNG = random.Random(0)
PROMPTS = [[RNG.randrange(250) for _ in range(length)] for length in (1, 3, 8, 9, 17, 30, 47, 64, 5, 71, 12, 33, 2, 25)]
COMMON = {"max_new_tokens": 24, "temperature": 0.0, "ignore_eos": True}
SAMPLED = {**COMMON, "temperature": 1.0}


def avoid_the_last(tokens, logits):
    logits[tokens[-1]] -= 3.0
    return logits


WISHES = [
    COMMON,
    {**SAMPLED, "seed": 1},
    {**COMMON, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2},
    {**SAMPLED, "seed": 2, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "frequency_penalty": 0.5},
    {**COMMON, "log_probabilities": 3},
    {**SAMPLED, "seed": 3, "log_probabilities": 0, "echo": True},
    {**SAMPLED, "seed": 4, "ignore_eos": False, "stop": ["e", "l"], "min_new_tokens": 5},
    {**SAMPLED, "seed": 5, "stop_token_ids": list(range(0, 250, 9)), "min_new_tokens": 3},
    {**COMMON, "logits_processors": [avoid_the_last]},
    {**SAMPLED, "seed": 6, "regex": r"[0-9]{3}-(he|she)?[a-f]{2,9}"},
    {**COMMON, "regex": r"(ab|cd)*", "log_probabilities": 2},
    {**COMMON, "max_new_tokens": 2},
    {**SAMPLED, "seed": 7, "logit_bias": {5: 4.0}, "bad_words": ["he"]},
    {**SAMPLED, "seed": 8, "allowed_token_ids": [5, 6, 7, 80, 90]},
]


def requests():
    pairs = zip(PROMPTS, WISHES, strict=True)
    return [TextGenerationRequest(prompt=prompt, sampling_params=SamplingParams(**wish)) for prompt, wish in pairs]


def said(outputs):
    assert [output.error for output in outputs] == [None] * len(outputs)
    return [
        (o.tokens, o.text, o.final_status, o.stop_reason, o.usage.num_generated_tokens, told_beside(o)) for o in outputs
    ]


def told_beside(output):
    entries = output.log_probabilities or []
    return [(entry.token_ranks, entry.token_texts, [*map(list, entry.top_log_probabilities)]) for entry in entries]


def logged(outputs):
    entries = [entry for output in outputs for entry in output.log_probabilities or []]
    return [value for entry in entries for value in entry.token_log_probabilities]


@pytest.fixture
def guesses(monkeypatch):
    """Makes guesses of known answers, with a wrong token at a random place of most; returns their list to fill."""
    known, rng = [], random.Random(1)

    def guess(drafter):
        tokens = drafter._tokens
        whole = next((each for each in known if each[: len(tokens)] == tokens), [])
        coming = whole[len(tokens) : len(tokens) + 6]
        if wrong := rng.choice([None, *range(6)]):
            coming = [*coming[:wrong], 7, *coming[wrong + 1 :]]
        return Guess(coming, 0.999) if coming else None

    monkeypatch.setattr(Drafter, "guess", guess)
    monkeypatch.setattr(Drafter, "greatest_rate", 0.999)
    return known


@pytest.fixture(scope="module")
def expected():
    return []


@pytest.fixture
def plain(load_tiny, expected, guesses):
    """What is said without drafts."""
    if not expected:
        outputs = load_tiny(enable_prefix_caching=False).generate(requests())
        assert sum(output.usage.num_draft_tokens for output in outputs) == 0
        expected[:] = outputs
    guesses += [prompt + output.tokens for prompt, output in zip(PROMPTS, expected, strict=True)]
    return said(expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_batch_tokens": 16},
        {"max_batch_size": 3},
        {"kv_cache_memory": cache_memory(20), "max_length": 120},
        {"attention": "reference"},
        {"data_parallel_degree": 2},
        {"linear": "torch", "attention": "paged", "page_size": 1},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_nothing_is_said_otherwise(load_tiny, plain, expected, settings):
    llm = load_tiny(speculative="lookup", **settings)
    outputs = llm.generate(requests())
    assert said(outputs) == plain
    usage = [output.usage for output in outputs]
    assert sum(each.num_draft_tokens for each in usage) > sum(each.num_accepted_tokens for each in usage) > 20
    if "kv_cache_memory" in settings:
        assert llm.scheduler.num_preemptions > 0
    assert logged(outputs) == pytest.approx(logged(expected), abs=1e-4)
    assert said(llm.generate(requests())) == plain  # on a prefix hit


def test_streamed(load_tiny, plain):
    llm = load_tiny(speculative="lookup")
    for request, expected in zip(requests(), plain, strict=True):
        if not request.sampling_params.echo:
            stream = llm.stream(request)
            pieces = list(stream)
            assert "".join(pieces) == expected[1]
            assert stream.output.tokens == expected[0]
