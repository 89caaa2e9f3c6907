"""What bars tokens, against transformers' processors; processors of a request's own; names of other engines."""

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as reference

from pipezoo_core.context import TextContext
from pipezoo_core.errors import InvalidRequestError, InvalidSettingError, LogitsProcessorError
from pipezoo_core.pipeline.sampler import NO_TOKEN, sample
from pipezoo_core.sampling_params import SamplingParams

VOCABULARY = 50
END = 7
PROMPT, ANSWER = [3, 4, 4, 9], [4, 11, 11]


def make_context(words=(), **sampling):
    context = TextContext(
        request_id="a",
        prompt_tokens=PROMPT,
        max_length=1000,
        sampling_params=SamplingParams(**{"temperature": 0.0, **sampling}),
        end_token_ids=[END],
        bad_words=words,
    )
    context.tokens += ANSWER
    context.set_chunk(context.num_pending)
    return context


def random_logits(rows=1, seed=0):
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def order_of(logits, context):
    """All tokens that a context may get, the most likely first: each is barred by its bias once it was chosen."""
    found = []
    logits = logits.clone()
    while (token := sample(logits, [context]).item()) != NO_TOKEN:
        found.append(token)
        logits[0, token] = -torch.inf
    return found


def expected_order(logits, *processors):
    row = LogitsProcessorList(processors)(torch.tensor([PROMPT + ANSWER]), logits.clone())[0]
    return [token for token in row.argsort(descending=True).tolist() if row[token] > -torch.inf]


WORDS = [[5], [11, 6], [11, 11, 8], [4, 11, 11, 2], [11, 4, 9], [12, 13], [9, *ANSWER, 1]]


@pytest.mark.parametrize("seed", range(3))
def test_bad_words_are_barred_as_transformers_does(seed):
    """Where all but the last token of one are there, also where it begins in the prompt."""
    logits = random_logits(seed=seed)
    expected = expected_order(logits, reference.NoBadWordsLogitsProcessor(WORDS, eos_token_id=END))
    assert order_of(logits, make_context(WORDS, bad_words=["any"])) == expected
    assert set(range(VOCABULARY)) - set(expected) == {5, 6, 8, 2, 1}


def test_only_allowed_tokens_are_left():
    logits, allowed = random_logits(), [9, 5, 5, 30, END]
    expected = [token for token in expected_order(logits) if token in allowed]
    assert order_of(logits, make_context(allowed_token_ids=allowed)) == expected
    assert order_of(logits, make_context(allowed_token_ids=allowed, min_new_tokens=4)) == (
        [token for token in expected if token != END]
    )


def test_processors_see_the_tokens_and_come_after_bias_and_penalties():
    seen = []

    def processor(tokens, logits):
        seen.append((tokens, logits.clone()))
        return -logits

    logits = random_logits()
    settings = {"logit_bias": {5: 2.0}, "repetition_penalty": 1.4}
    biased = logits.clone()
    biased[0, 5] += 2.0
    penalized = reference.RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([PROMPT + ANSWER]), biased)
    token = sample(logits, [make_context(**settings, logits_processors=processor)]).item()
    assert token == penalized.argmin().item()
    ((tokens, found),) = seen
    assert tokens == PROMPT + ANSWER
    torch.testing.assert_close(found, penalized[0])


def test_processors_run_in_turn_may_write_in_place_and_cannot_allow_what_is_barred():
    def only(*tokens):
        def processor(_, logits):
            kept = logits[list(tokens)].clone()
            logits.fill_(-torch.inf)
            logits[list(tokens)] = kept + 100
            return logits

        return processor

    logits = random_logits()
    assert set(order_of(logits, make_context(logits_processors=[only(3, 4, 5), only(4, 5, 6)]))) == {4, 5}
    context = make_context([[4]], bad_words=["any"], logits_processors=[only(4, 5)])
    assert order_of(logits, context) == [5]
    before = logits.clone()
    sample(logits, [make_context(logits_processors=only(1))])
    assert torch.equal(logits, before)


def raises(_, __):
    raise KeyError("missing")


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (raises, "KeyError.*missing"),
        (lambda _, logits: None, "NoneType"),
        (lambda _, logits: logits.tolist(), "list"),
        (lambda _, logits: logits[:-1], r"\[49\] logits instead of \[50\]"),
        (lambda _, logits: logits.unsqueeze(0), r"\[1, 50\] logits"),
        (lambda _, logits: logits * torch.nan, "NaN"),
        (lambda _, logits: logits + torch.inf, "infinity"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_processor_that_fails_fails_its_own_request(processor, reason, temperature):
    logits = random_logits(rows=3)
    fine = make_context(temperature=temperature, seed=1, top_p=0.9)
    failing = make_context(temperature=temperature, logits_processors=[processor])
    other = make_context(temperature=temperature, seed=2, logits_processors=[lambda _, logits: logits])
    tokens = sample(logits, [fine, failing, other]).tolist()
    assert tokens[1] == NO_TOKEN
    assert isinstance(failing.error, LogitsProcessorError)
    with pytest.raises(LogitsProcessorError, match=reason):
        raise failing.error
    assert isinstance(failing.error.__cause__, Exception)
    assert fine.error is other.error is None
    alone = [
        sample(logits[i : i + 1], [make_context(temperature=temperature, seed=seed, **more)]).item()
        for i, seed, more in ((0, 1, {"top_p": 0.9}), (2, 2, {}))
    ]
    assert [tokens[0], tokens[2]] == alone


def test_settings_that_leave_no_token_say_so():
    context = make_context([[5]], bad_words=["any"], allowed_token_ids=[5])
    assert sample(random_logits(), [context]).tolist() == [NO_TOKEN]
    with pytest.raises(InvalidRequestError, match=r"leave no token.*allowed_token_ids, bad_words"):
        raise context.error
    unsound = make_context(bad_words=["any"])
    assert sample(torch.full((1, VOCABULARY), torch.nan), [unsound]).tolist() == [NO_TOKEN]
    assert unsound.error is None  # it is the model's


@pytest.mark.parametrize("name", [*SamplingParams.elsewhere])
def test_a_name_of_another_engine_is_pointed_to_ours(name):
    with pytest.raises(InvalidSettingError) as raised:
        SamplingParams(**{name: 1})
    message = str(raised.value)
    assert repr(name) in message
    assert SamplingParams.elsewhere[name] in message
    assert all(setting in message for setting in SamplingParams.model_fields)
    assert len(message.encode()) < 1000
    ours = SamplingParams.elsewhere[name].split()[0].split("=")[0].strip(",")
    assert ours in {*SamplingParams.model_fields, "nothing"}
    assert name not in SamplingParams.model_fields


@pytest.mark.parametrize(("wrong", "right"), [("temprature", "temperature"), ("topk", "top_k"), ("stops", "stop")])
def test_a_misspelt_setting_is_guessed(wrong, right):
    with pytest.raises(InvalidSettingError, match=f"Did you mean '{right}'"):
        SamplingParams(**{wrong: 1})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"n": 2, "temperature": 0.0}, "'n'"),
        ({"n": 2, "top_k": 1}, "'n'"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"choice": ["a"], "regex": "a"}, "'regex' excludes 'choice'"),
        ({"echo": True}, "echo"),
    ],
)
def test_settings_that_exclude_one_another(settings, named):
    with pytest.raises(InvalidSettingError, match=named):
        SamplingParams(**settings)
