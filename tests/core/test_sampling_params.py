"""What a request may ask for has bounds, and what is beyond them is refused in a few words."""

import itertools

import pytest

from pipezoo_core.errors import InvalidRequestError, InvalidSettingError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams

BEYOND = {
    "temperature": [-1.0, float("nan"), float("inf"), 10**400, "x" * 10**6],
    "top_k": [-2, 1.5, "x" * 10**6],
    "top_p": [0.0, 1.1, float("nan"), 10**5000],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0.0, 1001.0, float("inf")],
    "frequency_penalty": [-2.1, 2.1],
    "presence_penalty": [-2.1, 2.1],
    "logit_bias": [
        dict.fromkeys(range(10**6), 1.0),
        {-1: 1.0},
        {1: float("inf")},
        {1: 1e30},
        {1: 10**5000},
        {"x" * 10**6: 1.0},
    ],
    "max_new_tokens": [0, 2**31, 10**400, 10**5000],
    "min_new_tokens": [-1, 2**31, 10**5000],
    "ignore_eos": ["x" * 10**6],
    "stop": [["x"] * 10**6, "x" * 10**6, [""], [1] * 10**6, itertools.repeat("x"), 7],
    "stop_token_ids": [[1] * 10**6, ["x" * 10**6], 7],
    "seed": [-1, 2**64, 10**400, 10**5000],
    "log_probabilities": [-1, 1.5, 129, 2**63, 10**5000],
    "echo": ["x" * 10**6],
    "json_schema": [7, "x" * 10**6, [1] * 10**6, {"const": float("nan")}],
    "regex": [7, ["x" * 10**6]],
    "grammar": [7, [1] * 10**6],
    "choice": [[], 7, [""], ["x"] * 10**6, ["x" * 10**6], [1], itertools.repeat("x")],
    "n": [0, -1, 129, 1.5, 10**5000],
    "bad_words": [[""], 7, ["x"] * 10**6, "x" * 10**6, itertools.repeat("x")],
    "allowed_token_ids": [[], 7, [1] * 10**6, ["x" * 10**6], itertools.repeat(1)],
    "logits_processors": [7, "x" * 10**6, [None], [print] * 10**6],
    "include_stop_str_in_output": ["x" * 10**6, 2],
    "skip_special_tokens": ["x" * 10**6, 2],
    "truncate_prompt_tokens": [-2, 0, 2**31, 1.5, 10**5000],
    "cache_salt": ["", "x" * 10**6, 7],
    "priority": [2**31, -(2**31) - 1, 0.5, "x" * 10**6],
    "x" * 10**6: [1],
}


def test_every_setting_is_tried():
    assert set(SamplingParams.model_fields) <= set(BEYOND)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in BEYOND for value in BEYOND[name]],
    ids=lambda part: str(type(part).__name__),
)
def test_what_is_beyond_the_bounds_is_refused(name, value):
    with pytest.raises(InvalidSettingError) as raised:
        SamplingParams(**{name: value})
    assert len(str(raised.value).encode()) < 1000
    assert name[:20] in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 10**30},
        {"seed": 2**64 - 1},
        {"stop": ["x" * 1024] * 128},
        {"logit_bias": dict.fromkeys(range(4096), -1000000.0)},
        {"stop_token_ids": list(range(4096))},
        {"max_new_tokens": 2**31 - 1, "min_new_tokens": 2**31 - 1},
        {"repetition_penalty": 1e3},
        {"allowed_token_ids": [1] * 2**18},
        {"choice": ["x" * 1024] * 1024},
        {"priority": -(2**31)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_is_within_the_bounds_is_taken(settings):
    assert SamplingParams(**settings).model_fields_set == set(settings)


@pytest.mark.parametrize(
    "fields",
    [{"request_id": "x" * 10**6}, {"request_id": 7}, {"request_id": []}, {"lora": 7}, {"sampling_params": {}}],
    ids=lambda fields: next(iter(fields)),
)
def test_a_request_of_other_kinds(fields):
    with pytest.raises(InvalidRequestError, match=next(iter(fields))) as raised:
        TextGenerationRequest(prompt="a", **fields)
    assert len(str(raised.value)) < 1000
