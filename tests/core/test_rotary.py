"""RoPE's parameters: those that cannot be computed with are refused before there is a model, not by its first request.

What is computed with the others is held against transformers where logits are.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import ROPE_TYPES, RotaryEmbedding, max_rotary_length

REQUIRED = {
    "default": {"rope_theta": 10000.0},
    "dynamic": {"rope_theta": 10000.0, "factor": 4.0},
    "linear": {"rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_theta": 10000.0, "original_max_position_embeddings": 100},
}
OPTIONAL = {
    "factor": 4.0, "attention_factor": 0.8, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.4,
}  # fmt: skip
NO_NUMBERS = [None, "4.0", True, 0, -1.0, math.nan, math.inf, 10**400, [4.0], {}]
HEAD_DIM, TRAINED = 16, 256


def of_type(rope_type):
    return {"rope_type": rope_type, **REQUIRED[rope_type], **(OPTIONAL if rope_type == "yarn" else {})}


def compute(rope):
    """Makes the layer and runs a step of it."""
    rotary = RotaryEmbedding(rope, HEAD_DIM, TRAINED)
    rotary(torch.tensor([0, 700]), torch.tensor([1, 701]), torch.float32)
    return rotary


def assert_refused(rope, message):
    with pytest.raises(UnsupportedModelError, match=message):
        RotaryEmbedding(rope, HEAD_DIM, TRAINED)
    with pytest.raises(UnsupportedModelError, match=message):
        max_rotary_length(rope, TRAINED)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize(("rope_type", "name"), [(kind, name) for kind in ROPE_TYPES for name in REQUIRED[kind]])
def test_a_needed_number_that_is_none_is_refused_by_name(rope_type, name, value):
    assert_refused({**of_type(rope_type), name: value}, f"'{name}'")


@pytest.mark.parametrize(("rope_type", "name"), [(kind, name) for kind in ROPE_TYPES for name in REQUIRED[kind]])
def test_a_missing_number_is_named(rope_type, name):
    rope = of_type(rope_type)
    del rope[name]
    assert_refused(rope, f"lack '{name}'")


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize("name", OPTIONAL)
def test_yarns_other_numbers_are_sound_or_left_out(name, value):
    rope = {**of_type("yarn"), name: value}
    if value is None or (value == 0 and name not in ("factor", "attention_factor")):
        without = {key: of_it for key, of_it in rope.items() if key != name}
        assert torch.equal(compute(rope).inverse_frequencies, compute(without).inverse_frequencies)
        assert max_rotary_length(rope, TRAINED) == max_rotary_length(without, TRAINED)
    else:
        assert_refused(rope, f"'{name}'")


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({**of_type("yarn"), "rope_theta": 1}, "another rope_theta"),
        ({**of_type("yarn"), "rope_theta": 0.5}, "another rope_theta"),
        ({"rope_type": None, "rope_theta": 1e4}, "unknown kind"),
        ({"rope_type": ["linear"], "rope_theta": 1e4}, "unknown kind"),
        ({**of_type("default"), "partial_rotary_factor": "1"}, "a part of each head"),
    ],
)
def test_what_else_is_refused(rope, message):
    assert_refused(rope, message)


def test_dynamic_scaling_of_a_head_with_one_frequency_is_refused():
    with pytest.raises(UnsupportedModelError, match="larger heads"):
        RotaryEmbedding(of_type("dynamic"), 2, TRAINED)


@pytest.mark.parametrize("rope_type", ROPE_TYPES)
@given(data=st.data())
def test_numbers_of_any_size_are_computed_with_or_refused(rope_type, data):
    rope = of_type(rope_type)
    numbers = st.floats() | st.integers(-1, 10**40) | st.floats(1.0, 1.0001) | st.none()
    for name in data.draw(st.lists(st.sampled_from(sorted(rope.keys() - {"rope_type"})), min_size=1)):
        rope[name] = data.draw(numbers)
    try:
        max_rotary_length(rope, TRAINED)
        assert compute(rope).inverse_frequencies.isfinite().all()
    except UnsupportedModelError:
        pass


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        (of_type("default"), 256),
        ({"rope_theta": 10000.0}, 256),
        (of_type("linear"), 1024),
        (of_type("dynamic"), 1024),
        (of_type("llama3"), 256),
        (of_type("yarn"), 400),
        ({**of_type("yarn"), "factor": None}, 256),
    ],
)
def test_longest_request(rope, longest):
    assert max_rotary_length(rope, TRAINED) == longest
