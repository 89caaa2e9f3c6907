"""RoPE's parameters: those that cannot be computed with are refused before there is a model, not by its first request.

What is computed with the others is held against transformers: here, and where logits are.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import (
    ROPE_TYPES,
    RotaryEmbedding,
    apply_rotary,
    halves,
    max_rotary_length,
    max_shareable_length,
)

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
    "longrope": {
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 100,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0],
    },
    "proportional": {"rope_theta": 10000.0},
    "yarn": {"rope_theta": 10000.0, "original_max_position_embeddings": 100},
}
OPTIONAL = {
    "factor": 4.0, "attention_factor": 0.8, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.4,
}  # fmt: skip
LISTS = ("short_factor", "long_factor")
NUMBERS = {kind: [name for name in rope if name not in LISTS] for kind, rope in REQUIRED.items()}
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
@pytest.mark.parametrize(("rope_type", "name"), [(kind, name) for kind in ROPE_TYPES for name in NUMBERS[kind]])
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
        ({**of_type("default"), "partial_rotary_factor": "1"}, "'partial_rotary_factor'"),
        ({**of_type("default"), "partial_rotary_factor": 0}, "'partial_rotary_factor'"),
        ({**of_type("longrope"), "original_max_position_embeddings": 1}, "another original_max"),
        ({**of_type("longrope"), "long_factor": [1.0, None] * 4}, "'long_factor'"),
        ({**of_type("proportional"), "factor": -1}, "'factor'"),
    ],
)
def test_what_else_is_refused(rope, message):
    assert_refused(rope, message)


def test_dynamic_scaling_of_a_head_with_one_frequency_is_refused():
    with pytest.raises(UnsupportedModelError, match="larger heads"):
        RotaryEmbedding(of_type("dynamic"), 2, TRAINED)


@pytest.mark.matrix
@pytest.mark.parametrize("rope_type", ROPE_TYPES)
@given(data=st.data())
def test_numbers_of_any_size_are_computed_with_or_refused(rope_type, data):
    rope = of_type(rope_type)
    numbers = st.floats() | st.integers(-1, 10**40) | st.floats(1.0, 1.0001) | st.none()
    for name in data.draw(st.lists(st.sampled_from(sorted(rope.keys() - {"rope_type", *LISTS})), min_size=1)):
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
        (of_type("longrope"), 256),
        (of_type("proportional"), 256),
        (of_type("yarn"), 400),
        ({**of_type("yarn"), "factor": None}, 256),
    ],
)
def test_longest_request(rope, longest):
    assert max_rotary_length(rope, TRAINED) == longest


@pytest.mark.parametrize("part", [None, 0.5, 0.75])
@pytest.mark.parametrize("length", [50, 300])
@pytest.mark.parametrize("rope_type", sorted(ROPE_INIT_FUNCTIONS))
def test_every_type_is_as_in_transformers(rope_type, part, length):
    """Also of a part of each head; each type that transformers has, short requests and long ones."""
    rope = of_type(rope_type) | ({} if part is None else {"partial_rotary_factor": part})
    num_frequencies = 8 if rope_type == "proportional" or part is None else int(HEAD_DIM * part) // 2
    rope |= {name: rope[name][:num_frequencies] for name in LISTS if name in rope}
    config = LlamaConfig(head_dim=HEAD_DIM, hidden_size=64, max_position_embeddings=TRAINED, rope_parameters=rope)
    frequencies, scaling = ROPE_INIT_FUNCTIONS[rope_type](config, "cpu", seq_len=length)
    rotary = RotaryEmbedding(rope, HEAD_DIM, TRAINED)
    assert rotary.rotary_dim == 2 * num_frequencies
    positions = torch.tensor([0, 7, length - 1])
    cos, sin = rotary(positions, torch.full((3,), length), torch.float32)
    angles = (positions[:, None] * frequencies).repeat(1, 2)
    torch.testing.assert_close(cos, angles.cos() * scaling, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(sin, angles.sin() * scaling, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_a_request_goes_by_its_own_length(rope_type):
    rotary = RotaryEmbedding(of_type(rope_type), HEAD_DIM, TRAINED)
    positions, lengths = torch.tensor([9, 9, 9]), torch.tensor([10, 900, 10])
    together = rotary(positions, lengths, torch.float32)
    for row in range(3):
        alone = rotary(positions[row : row + 1], lengths[row : row + 1], torch.float32)
        assert torch.equal(together[0][row], alone[0][0])
        assert torch.equal(together[1][row], alone[1][0])
    assert not torch.equal(together[0][0], together[0][1])


def test_prompts_that_can_be_shared():
    found = {kind: max_shareable_length(of_type(kind), TRAINED) for kind in ROPE_TYPES}
    assert found == {**dict.fromkeys(ROPE_TYPES), "dynamic": TRAINED, "longrope": 100}


@pytest.mark.parametrize("value", [value for value in NO_NUMBERS if value != [4.0]], ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize("name", LISTS)
def test_a_needed_list_that_is_none_is_refused_by_name(name, value):
    assert_refused({**of_type("longrope"), name: value}, f"'{name}'")
    assert_refused({**of_type("longrope"), name: [1.0] * 7 + [value]}, f"'{name}'")


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("number", [7, 9])
def test_longropes_lists_have_a_number_per_frequency(name, number):
    with pytest.raises(UnsupportedModelError, match=f"'{name}'.*{number}"):
        RotaryEmbedding({**of_type("longrope"), name: [1.0] * number}, HEAD_DIM, TRAINED)


@pytest.mark.parametrize("rotary_dim", [0, 3, 18])
def test_a_part_of_a_head_that_is_none(rotary_dim):
    with pytest.raises(UnsupportedModelError, match=f"no pairs.*{rotary_dim}"):
        RotaryEmbedding(of_type("default"), HEAD_DIM, TRAINED, rotary_dim)


@pytest.mark.parametrize("rotary_dim", [16, 8, 2])
def test_halves_make_a_rotation_of_neighbours(rotary_dim):
    """Scores of rotated queries and keys are those of rotated pairs of neighbours, as complex numbers."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(2 * HEAD_DIM, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    rotary = RotaryEmbedding(of_type("default"), HEAD_DIM, TRAINED, rotary_dim)
    positions = torch.tensor([0, 3, 50, 51])
    rotation = rotary(positions, positions + 1, torch.float64)
    q, k = (
        apply_rotary(x @ halves(HEAD_DIM, rotary_dim)(w).T, *rotation, HEAD_DIM).unflatten(-1, (2, HEAD_DIM))
        for w in rows
    )
    turns = torch.polar(torch.ones(1, dtype=torch.float64), positions[:, None] * rotary.inverse_frequencies.double())

    def neighbours(w):
        heads = (x @ w.T).unflatten(-1, (2, HEAD_DIM))
        pairs = torch.view_as_complex(heads[..., :rotary_dim].unflatten(-1, (-1, 2)).contiguous())
        return torch.cat((torch.view_as_real(pairs * turns[:, None]).flatten(-2), heads[..., rotary_dim:]), dim=-1)

    expected = torch.einsum("thd,shd->hts", *(neighbours(w) for w in rows))
    torch.testing.assert_close(torch.einsum("thd,shd->hts", q, k), expected, atol=1e-4, rtol=1e-4)
