"""What settings say about values and names that are none, whichever settings they are."""

from contextlib import suppress
from typing import ClassVar

import pytest

from pipezoo.loading.settings import LoadSettings
from pipezoo_core.config import KVCacheConfig, LoRAConfig, PipelineConfig
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.settings import Settings

KINDS = [KVCacheConfig, LoRAConfig, LoadSettings, PipelineConfig, SamplingParams]
ANYTHING = "huggingface_config"  # of a type that transformers has


def needed(kind):
    return {"model_path": ""} if kind is PipelineConfig else {}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in kind.model_fields if name != ANYTHING]
)
def test_a_bad_value_is_named_with_what_is_allowed_in_our_words(kind, name):
    with pytest.raises(InvalidSettingError) as caught:
        kind(**{**needed(kind), name: object()})
    message = str(caught.value)
    assert name in message or name in ("device", "devices")
    assert caught.value.allowed or caught.value.cure
    assert "input should" not in message.lower()
    assert "validation" not in message
    assert len(message.encode()) < 1024


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (LoadSettings, "max_batch_size", True),
        (KVCacheConfig, "page_size", True),
        (SamplingParams, "temperature", True),
        (SamplingParams, "top_k", False),
        (SamplingParams, "stop_token_ids", [7, True]),
        (SamplingParams, "stop_token_ids", {True}),
        (SamplingParams, "logit_bias", {7: True}),
        (SamplingParams, "logit_bias", {True: 1.0}),
    ],
)
def test_true_and_false_are_no_numbers(kind, name, value):
    with pytest.raises(InvalidSettingError, match=f"setting '{name}' is not valid .found: .*(True|False)"):
        kind(**{name: value})


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_lists_all_that_are_known(kind):
    known = list(kind.model_fields)
    with pytest.raises(InvalidSettingError, match="unknown setting 'nonesuch'") as caught:
        kind(**needed(kind), nonesuch=1)
    assert all(name in str(caught.value) for name in known)
    assert caught.value.cure == "Check the spelling."
    with pytest.raises(InvalidSettingError, match=rf"Did you mean '{known[0]}'\?"):
        kind(**needed(kind), **{known[0] + "s": 1})


@pytest.mark.parametrize(
    ("kind", "values", "allowed"),
    [
        (LoadSettings, {"page_size": 0}, "a whole number, at least 1, at most 4,096"),
        (LoadSettings, {"max_length": "long"}, "a whole number, at least 2, at most 2,147,483,647, or None"),
        (LoadSettings, {"enforce_eager": "maybe"}, "True or False"),
        (LoadSettings, {"attention": "flash"}, "auto, reference, paged, native"),
        (LoadSettings, {"rank_timeout": float("nan")}, "a number, at least 1, at most 1,000,000"),
        (LoadSettings, {"plugin": 3}, "text, or None"),
        (SamplingParams, {"top_p": 2}, "a number, above 0, at most 1"),
        (SamplingParams, {"stop": ["a" * 2000]}, "a list, each text, not shorter than 1, not longer than 1,024"),
        (SamplingParams, {"seed": -1}, "a whole number, at least 0, below 18,446,744,073,709,551,616, or None"),
        (
            SamplingParams,
            {"logit_bias": {"a": 1}},
            "a mapping from a whole number, at least 0 to a number, at least -1,000,000, at most 1,000,000",
        ),
    ],
)
def test_bounds_are_told(kind, values, allowed):
    with pytest.raises(InvalidSettingError) as caught:
        kind(**values)
    assert caught.value.allowed == allowed


EXTREMES = {
    "many digits": 10**5000,
    "many digits below 0": -(10**5000),
    "text of many digits": "9" * 5000,
    "2**63": 2**63,
    "infinite": float("inf"),
    "none": float("nan"),
    "surrogate": "\ud800",
}


@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_values_are_taken_or_refused(kind, value):
    for name in kind.model_fields.keys() - {ANYTHING}:
        with suppress(InvalidSettingError):
            kind(**{**needed(kind), name: EXTREMES[value]})


@pytest.mark.parametrize("name", ["self", "cls", "values", "", "\ud800", "a" * 10**6, "model_fields", "elsewhere"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_text_may_be_an_unknown_name(kind, name):
    with pytest.raises(InvalidSettingError, match="unknown setting") as caught:
        kind(**{**needed(kind), name: 1})
    assert len(str(caught.value).encode()) < 1024


def test_an_unknown_name_comes_before_a_bad_value():
    with pytest.raises(InvalidSettingError, match="unknown setting 'max_lenght'"):
        LoadSettings(page_size=0, max_lenght=5)


@pytest.mark.parametrize("kind", KINDS)
def test_of_several_unknown_names_the_first_is_told(kind):
    names = [f"nonesuch{number}" for number in range(20)]
    with pytest.raises(InvalidSettingError, match="unknown setting 'nonesuch0'"):
        kind(**{**needed(kind), **dict.fromkeys(names)})
    with pytest.raises(InvalidSettingError, match="unknown setting 'self'"):
        kind(**needed(kind)).updated(**{"self": 1, **dict.fromkeys(names)})


def test_names_of_other_programs():
    class Spoken(Settings):
        elsewhere: ClassVar = {"colour": "color=…"}
        color: int = 0

    with pytest.raises(InvalidSettingError, match=r"unknown setting 'colour' .*Write color=…\."):
        Spoken(colour=1)
