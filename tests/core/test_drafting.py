"""Guesses from what is there already, and what they are worth."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipezoo_core.drafting import (
    Acceptance,
    Drafter,
    Match,
    PromptLookup,
    StepBalance,
    StepCosts,
    StepTimes,
    prompt_lookup,
)

MAX_LENGTH = 16  # of a match
TOKENS = st.lists(st.integers(0, 2), max_size=60)


def longest_match(tokens, max_places=4096):
    """By trying all: the longest ending that occurred before, of those as long the latest.

    Only the last places at which the last token stands are tried.
    """
    ends = [end for end in range(1, len(tokens)) if tokens[end - 1] == tokens[-1]][-max_places:]
    for length in range(min(MAX_LENGTH, len(tokens) - 1), 0, -1):
        for end in (end for end in reversed(ends) if end >= length):
            if tokens[end - length : end] == tokens[-length:]:
                return Match(length, end)
    return None


def continued(tokens, match, count):
    """By appending one token after the other."""
    whole = list(tokens)
    for place in range(count):
        whole.append(whole[match.end + place])
    return whole[len(tokens) :]


@given(TOKENS, st.lists(TOKENS, max_size=5), st.integers(1, 9))
def test_lookup_finds_what_trying_all_finds(tokens, further, count):
    tokens = list(tokens)
    lookup = PromptLookup(tokens)
    for more in [[], *further]:
        tokens += more
        match = lookup.find()
        assert match == longest_match(tokens)
        if match is not None:
            assert lookup.follow(match, count) == continued(tokens, match, count)


@given(TOKENS, st.integers(1, 9))
def test_only_the_last_places_of_a_token_are_looked_at(tokens, max_places):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_lookup, "_MAX_PLACES", max_places)
        assert PromptLookup(tokens).find() == longest_match(tokens, max_places)


def test_a_very_frequent_token():
    tokens = [5, 7, *[7, 8] * 4094, 6, 7]
    assert PromptLookup([*tokens, 5, 7]).find() == Match(2, 2)  # the longest, of 4096 places
    assert PromptLookup([9, *tokens, 5, 7]).find() == Match(2, 3)
    assert PromptLookup([*tokens, 7, 5, 7]).find() == Match(1, len(tokens) + 1)  # the longest is one place too far
    assert PromptLookup([7] * 10_000).find() == Match(MAX_LENGTH, 9_999)


def test_a_long_list_is_looked_through_to_its_beginning():
    rng = random.Random(0)
    tokens = [rng.randrange(50_000) for _ in range(3000)]
    lookup = PromptLookup(tokens)
    lookup.find()
    tokens += tokens[:5]
    assert lookup.find() == longest_match(tokens) == Match(5, 5)
    tokens += [60_000]
    assert lookup.find() is None


def test_guesses_that_come_true_are_trusted_and_others_are_not():
    rng = random.Random(0)
    tokens = [rng.randrange(50_000) for _ in range(40)] * 2
    drafter = Drafter(tokens)
    rates = []
    for _ in range(20):
        guess = drafter.guess()
        rates.append(guess.rate)
        assert list(guess.tokens) == tokens[-40:][: len(guess.tokens)]
        tokens += guess.tokens[:2]
    assert rates == sorted(rates)
    assert rates[-1] > 0.95 > rates[0]
    for number in range(20):
        tokens += [60_000 + number, tokens[3]]  # the last one was there, and something else came behind it
        guess = drafter.guess()
        assert guess.tokens[0] != 60_001 + number
    assert guess.rate < 0.1


def test_what_was_long_ago_is_forgotten():
    acceptance = Acceptance()
    for _ in range(100):
        acceptance.note(5, 0, is_wrong=True)
    low = acceptance.rate(5)
    for _ in range(10):
        acceptance.note(5, 4, is_wrong=False)
    assert low < 0.15
    assert acceptance.rate(5) > 0.7
    assert acceptance.rate(4) == acceptance.rate(5)
    assert acceptance.rate(2) == Acceptance().rate(2)
    assert acceptance.greatest == max(acceptance.rate(length) for length in (1, 2, 4, 8, 16))


@pytest.mark.parametrize(
    ("num_rows", "num_tokens", "rate", "expected"),
    [(1, 1, 0.2, 0), (1, 1, 0.99, 8), (8, 8, 0.9, 4), (64, 64, 0.7, 0), (64, 64, 0.99, 8), (1000, 4, 0.2, 3)],
)
def test_what_a_draft_is_worth(num_rows, num_tokens, rate, expected):
    balance = StepBalance(StepCosts(), num_rows, num_tokens)
    assert balance.num_worthwhile(rate, 8) == expected
    assert balance.num_worthwhile(rate, 1) == min(1, expected)
    assert balance.num_worthwhile(rate, 0) == balance.num_worthwhile(rate, -3) == 0


def test_drafts_of_a_step_are_counted():
    balance = StepBalance(StepCosts(), 8, 8)
    balance.add(0.5, 2)
    assert (balance.num_rows, balance.num_tokens) == (10, 8.75)


def measured(*steps):
    costs = StepCosts()
    for num_rows, seconds in steps:
        costs.note(num_rows, seconds)
    return costs


def worth(costs, num_rows, rate):
    return StepBalance(costs, num_rows, num_rows).num_worthwhile(rate, 8)


def test_what_was_measured_decides():
    """Of eight requests whose steps of more rows take twice as long, and of others where they take no longer."""
    assert worth(StepCosts(), 8, 0.9) == 4
    assert worth(measured(*[(8, 1.0), (10, 2.0), (14, 2.1)] * 2), 8, 0.9) == 0
    assert worth(measured(*[(8, 1.0), (10, 1.0), (14, 1.0)] * 2), 8, 0.9) == 8


def test_a_step_costs_what_alike_steps_took():
    costs = measured((8, 3.0), (8, 2.0), (8, 4.0), (40, 9.0), (40, 9.0))
    assert costs.of(8) == pytest.approx(2.0)
    assert costs.of(40) == pytest.approx(9.0)
    assert costs.of(5) == pytest.approx(2.0 * 1.2 / 1.32)  # in the proportion that is expected
    assert costs.of(1) == pytest.approx(2.0 * 0.85 / 1.32)  # as the nearest
    assert costs.of(60) == pytest.approx(9.0 * 6.3 / 4.7)
    assert costs.of(1000) == pytest.approx(9.0 * 81.5 / 4.7)


def test_a_single_time_of_alike_steps_says_nothing_yet():
    costs = measured((8, 1.0), (8, 1.0), (10, 50.0))
    assert costs.of(10) == pytest.approx(1.4 / 1.32)
    costs.note(10, 1.2)
    assert costs.of(10) == pytest.approx(1.2)


def test_times_are_forgotten_one_by_one():
    costs = measured((10, 9.0), (10, 2.0), *[(8, 1.0)] * 200, (10, 9.0), *[(8, 1.0)] * 54)
    assert costs.of(10) == pytest.approx(2.0)
    costs.note(10, 9.0)
    assert costs.of(10) == pytest.approx(9.0)
    for _ in range(256):
        costs.note(8, 1.0)
    assert costs.of(10) == pytest.approx(1.4 / 1.32)
    assert costs.of(8) == pytest.approx(1.0)


def test_the_latest_times_count():
    assert measured((8, 1.0), *[(8, 2.0)] * 5).of(8) == pytest.approx(2.0)


def test_times_of_many_requests_say_nothing_of_one():
    times = StepTimes()
    for _ in range(4):
        times.note(8, 8, 40.0)
        times.note(1, 1, 8.0)
    assert times.costs(6).of(8) == pytest.approx(40.0)
    assert times.costs(1).of(8) == pytest.approx(8.0 * 1.32 / 0.85)


def test_the_first_step_of_so_many_rows_is_not_measured():
    """It may have been recorded; so may each other one of a number of rows that is new."""
    times = StepTimes()
    for num_rows in (5, 6, 7, 8):
        times.note(1, num_rows, 50.0)
    assert times.costs(1).of(8) == pytest.approx(1.32)
    for num_rows in (5, 6):
        times.note(1, num_rows, 2.0)
    assert times.costs(1).of(6) == pytest.approx(2.0)
