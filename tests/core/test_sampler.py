"""The sampler against transformers' logits processors, and its draws against the distribution they leave."""

import collections

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as reference

from pipezoo_core.context import TextContext
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.pipeline import sampler
from pipezoo_core.pipeline.sampler import NO_TOKEN, _adjust_, _draw_tokens, _least_kept, sample
from pipezoo_core.pipeline.token_masks import TokenMasks
from pipezoo_core.sampling_params import SamplingParams

VOCABULARY = 50
END = 7
PROMPT, ANSWER = [3, 4, 4, 9], [4, 11, 11]


def make_context(answer=ANSWER, **sampling):
    context = TextContext(
        request_id="a",
        prompt_tokens=PROMPT,
        max_length=10**5,
        sampling_params=SamplingParams(**sampling),
        end_token_ids=[END],
    )
    context.tokens += answer
    context.set_chunk(context.num_pending)
    return context


def random_logits(rows=1, seed=0):
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def kept_tokens(logits, **sampling):
    """Which tokens can be drawn, and how often: 20,000 evenly spaced draws."""
    draws = torch.arange(20_000, dtype=torch.float64) / 20_000
    params = [SamplingParams(**sampling)] * len(draws)
    tokens = _draw_tokens(logits.expand(len(draws), -1), params, draws)
    counts = collections.Counter(tokens.tolist())
    return torch.tensor([counts[i] / 20_000 for i in range(VOCABULARY)])


def adjust(logits, context):
    adjusted = logits.clone()
    _adjust_(adjusted[0], context)
    return adjusted


SETTINGS = {
    "temperature": ({"temperature": 0.7}, [reference.TemperatureLogitsWarper(0.7)]),
    "top_k": ({"top_k": 5}, [reference.TopKLogitsWarper(5)]),
    "top_p": ({"top_p": 0.6}, [reference.TopPLogitsWarper(0.6)]),
    "min_p": ({"min_p": 0.1}, [reference.MinPLogitsWarper(0.1)]),
    "all": (
        {"temperature": 1.3, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
        [
            reference.TemperatureLogitsWarper(1.3),
            reference.TopKLogitsWarper(20),
            reference.TopPLogitsWarper(0.8),
            reference.MinPLogitsWarper(0.05),
        ],
    ),
}


@pytest.mark.matrix
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", range(3))
def test_distribution_equals_transformers(name, seed):
    sampling, processors = SETTINGS[name]
    logits = random_logits(seed=seed)
    expected = LogitsProcessorList(processors)(torch.tensor([PROMPT]), logits)[0].softmax(-1)
    torch.testing.assert_close(kept_tokens(logits, **sampling), expected, atol=2e-4, rtol=0)


LARGE = 3001  # more than a few of the most likely tokens, and no multiple of a block
LARGE_SETTINGS = [
    {},
    {"top_k": 5},
    {"top_k": 700, "top_p": 0.9},
    {"top_p": 0.3},
    {"temperature": 20.0, "top_p": 0.99},
    {"temperature": 3.0, "top_p": 0.95, "min_p": 0.01},
]


def processed(row_V, params):
    """The distribution that transformers' processors leave, float64."""
    processors = [reference.TemperatureLogitsWarper(params.temperature)]
    processors += [reference.TopKLogitsWarper(params.top_k)] if params.top_k else []
    processors += [reference.TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []
    processors += [reference.MinPLogitsWarper(params.min_p)] if params.min_p else []
    return LogitsProcessorList(processors)(torch.tensor([PROMPT]), row_V.unsqueeze(0))[0].double().softmax(-1)


def test_draws_invert_the_distribution_of_a_large_vocabulary():
    """Of rows with settings of their own in one batch; some tokens cannot be drawn, the first and last among them."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(LARGE_SETTINGS), LARGE, generator=generator) * 3
    logits[:, :300] = logits[:, 1000:1500] = logits[:, -3:] = -torch.inf
    params = [SamplingParams(**settings) for settings in LARGE_SETTINGS]
    probabilities = torch.stack([processed(row, own) for row, own in zip(logits, params, strict=True)])
    ends = probabilities.cumsum(-1)
    for number in [0.0, *torch.rand(200, generator=generator).tolist(), 1 - 2**-53]:
        draws = torch.full((len(params),), number, dtype=torch.float64)
        tokens = _draw_tokens(logits, params, draws).unsqueeze(-1)
        probability = probabilities.gather(-1, tokens)
        end = ends.gather(-1, tokens)
        assert (probability > 0).all(), number
        assert (end - probability - 1e-6 <= number).all(), number
        assert (number <= end + 1e-6).all(), number


@pytest.mark.parametrize("row", range(len(LARGE_SETTINGS)))
def test_a_seed_repeats_whatever_the_settings_of_neighbours(row):
    logits = torch.randn(len(LARGE_SETTINGS), LARGE, generator=torch.Generator().manual_seed(2)) * 3
    for seed in range(20):
        contexts = [make_context(seed=seed, **settings) for settings in LARGE_SETTINGS]
        alone = make_context(seed=seed, **LARGE_SETTINGS[row])
        assert sample(logits, contexts)[row] == sample(logits[row : row + 1], [alone]).item()


def test_what_is_kept_does_not_depend_on_neighbours():
    """To the last bit, whatever number of candidates the others need."""
    settings = [*LARGE_SETTINGS, {"top_k": 2500}]
    params = [SamplingParams(**own) for own in settings]
    generator = torch.Generator().manual_seed(3)
    probabilities = (torch.randn(len(params), LARGE, generator=generator) * 3).softmax(-1)
    together = _least_kept(probabilities, params)
    for row, own in enumerate(params):
        alone = _least_kept(probabilities[row : row + 1], [own])
        assert torch.equal(together[row], alone[0])


def test_the_most_likely_token_alone_is_greedy():
    logits = torch.zeros(1, VOCABULARY)
    logits[0, [10, 20]] = 1.0
    assert {sample(logits, [make_context(top_k=1, seed=seed)]).item() for seed in range(20)} == {10}


@pytest.mark.parametrize("sampling", [{"top_k": 2}, {"top_p": 0.5}])
def test_tokens_as_likely_as_the_last_one_stay(sampling):
    logits = torch.full((1, VOCABULARY), -20.0)
    logits[0, 3], logits[0, [10, 20, 30]] = 1.0, 0.5
    kept = kept_tokens(logits, **sampling)
    assert kept.nonzero().flatten().tolist() == [3, 10, 20, 30]


def test_repetition_penalty_equals_transformers():
    logits, tokens = random_logits(), torch.tensor([PROMPT + ANSWER])
    expected = reference.RepetitionPenaltyLogitsProcessor(1.4)(tokens, logits.clone())
    torch.testing.assert_close(adjust(logits, make_context(repetition_penalty=1.4)), expected)


def test_frequency_and_presence_penalties_follow_openai():
    logits = random_logits()
    expected = logits.clone()
    for token in set(ANSWER):
        expected[0, token] -= 0.5 * ANSWER.count(token) + 0.25
    actual = adjust(logits, make_context(frequency_penalty=0.5, presence_penalty=0.25))
    torch.testing.assert_close(actual, expected)
    assert torch.equal(adjust(logits, make_context([], frequency_penalty=0.5)), logits)


def test_logit_bias_is_added():
    logits = random_logits()
    adjusted = adjust(logits, make_context(logit_bias={5: 100.0, 6: -1.0}))
    assert torch.allclose((adjusted - logits)[0, [5, 6]], torch.tensor([100.0, -1.0]))
    assert sample(logits, [make_context(temperature=0.0, logit_bias={5: 100.0})]).tolist() == [5]


MANY = {
    "repetition_penalty": {"repetition_penalty": 1.4},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "presence_penalty": {"presence_penalty": 0.5},
    "logit_bias": {"logit_bias": dict.fromkeys(range(4096), 1.0)},
    "stop_token_ids": {"stop_token_ids": range(4096), "min_new_tokens": 10**4},
    "allowed_token_ids": {"allowed_token_ids": range(4096)},
}


@pytest.mark.parametrize("name", MANY)
def test_a_step_makes_nothing_anew_of_what_it_had_before(name, monkeypatch):
    """Whatever the length of the answer or of a setting: no list becomes a tensor again in each step."""
    context = make_context([i % 4000 for i in range(9000)], **MANY[name])
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    made, tensor = [], torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda data, **kind: (made.append(len(data)), tensor(data, **kind))[1])
    for token in (4500, 4501):
        context.tokens.append(token)
        _adjust_(logits.clone(), context)
    assert max(made, default=0) < 100


def test_tokens_that_come_later_are_penalized_like_those_there_from_the_first():
    settings = {"repetition_penalty": 1.4, "frequency_penalty": 0.5, "presence_penalty": 0.25}
    grown, logits = make_context([], **settings), random_logits()
    for num_new in range(40):
        answer = [7 * i % 30 for i in range(num_new)]
        grown.tokens[len(PROMPT) :] += answer[-1:]
        assert torch.equal(adjust(logits, grown), adjust(logits, make_context(answer, **settings)))


def test_min_new_tokens_bars_the_end_until_then():
    logits = random_logits()
    logits[0, END] = 100
    assert sample(logits, [make_context(temperature=0.0, min_new_tokens=4)]).item() != END
    assert sample(logits, [make_context(temperature=0.0, min_new_tokens=3)]).item() == END


def test_each_row_goes_by_its_own_settings():
    logits = random_logits(rows=1).expand(4, -1)
    contexts = [
        make_context(temperature=0.0),
        make_context(temperature=0.0, logit_bias={5: 100.0}),
        make_context(temperature=1.0, top_k=1),
        make_context(temperature=1e-9, seed=3),
    ]
    best = logits[0].argmax().item()
    assert sample(logits, contexts).tolist() == [best, 5, best, best]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_may_leave_its_logits_in_any_precision(dtype):
    logits = random_logits(rows=3).to(dtype)
    assert sample(logits, [make_context(temperature=0.0)] * 3).tolist() == logits.argmax(-1).tolist()


def test_a_seed_repeats_whatever_the_neighbours():
    logits = random_logits(rows=2)
    alone = sample(logits[:1], [make_context(seed=11)]).item()
    assert sample(logits, [make_context(seed=11), make_context(seed=5)])[0].item() == alone
    draws = {sample(logits[:1], [make_context()]).item() for _ in range(50)}
    assert len(draws) > 1


def test_logits_are_left_as_they_are():
    logits = random_logits()
    before = logits.clone()
    sample(logits, [make_context(logit_bias={1: 5.0}, temperature=0.7, top_p=0.5, repetition_penalty=2.0)])
    assert torch.equal(logits, before)


def test_settings_of_a_copy_are_looked_at_anew():
    params = SamplingParams()
    assert not params.changes_logits
    assert params.model_copy(update={"logit_bias": {5: 1.0}}).changes_logits
    assert not params.updated(logit_bias={5: 1.0}).model_copy(update={"logit_bias": {}}).changes_logits


PROCESSORS = {
    "added": lambda parameter, logits: logits + parameter,
    "added in place": lambda parameter, logits: logits.add_(parameter),
    "itself": lambda parameter, logits: parameter,
    "a view": lambda parameter, logits: parameter[:],
    "in inference mode": lambda parameter, logits: torch.inference_mode()(torch.add)(parameter, logits),
    "with gradients": lambda parameter, logits: torch.enable_grad()(torch.add)(parameter, logits),
}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_may_have_parameters(name, mode):
    """Also where the logits are a model's own, made without gradients."""
    parameter = torch.nn.Parameter(torch.zeros(VOCABULARY))
    parameter.data[5] = 100.0
    context = make_context(
        temperature=0.0, logits_processors=[lambda tokens, logits: PROCESSORS[name](parameter, logits)]
    )
    with torch.inference_mode():
        logits = random_logits(rows=2)
    with mode():
        tokens = sample(logits, [context, make_context(temperature=0.0)])
    assert context.error is None
    assert tokens.tolist() == [5, logits[1].argmax().item()]


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0, "repetition_penalty": 1.5}])
def test_a_few_rows_at_a_time_are_as_good_as_all(monkeypatch, sampling):
    """Also of rows among others, with grammars for some; chunks that reach no end have their most likely token."""
    logits, sampled = random_logits(rows=9), [1, 2, 4, 5, 8]
    barred = torch.zeros(2, VOCABULARY, dtype=torch.bool)
    barred[0, :30], barred[1, 20:] = True, True

    def tokens(masks):
        contexts = [make_context(seed=i, **sampling) for i in range(9)]
        for i in set(range(9)).difference(sampled):
            contexts[i].set_chunk(2)
        return sample(logits, contexts, masks).tolist()

    masks = TokenMasks([1, 4], barred)
    whole = tokens(None), tokens(masks)
    alone = [sample(logits[i : i + 1], [make_context(seed=i, **sampling)]).item() for i in range(9)]
    best = logits.argmax(-1).tolist()
    assert whole[0] == [alone[i] if i in sampled else best[i] for i in range(9)]
    assert whole[1][1] >= 30
    assert whole[1][4] < 20
    monkeypatch.setattr(sampler, "NUMBERS_SAMPLED_AT_ONCE", 2 * VOCABULARY)
    assert (tokens(None), tokens(masks)) == whole


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": float("nan")},
        {"top_k": -2},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {3: float("nan")}},
        {"max_new_tokens": 0},
        {"min_new_tokens": 5, "max_new_tokens": 4},
        {"stop": ""},
        {"echo": True},
        {"temprature": 1.0},
    ],
)
def test_bad_settings_are_refused_by_name(setting):
    with pytest.raises(InvalidSettingError, match=next(iter(setting))):
        SamplingParams(**setting)


def test_generation_config_lies_between_ours_and_the_callers():
    params = SamplingParams.from_generation_config({"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2, "top_k": None})
    assert (params.temperature, params.top_p, params.top_k) == (0.6, 0.9, 0)
    assert params.updated(temperature=0.0).top_p == 0.9
    assert SamplingParams.from_generation_config({"do_sample": False, "temperature": 0.6}).is_greedy


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}])
def test_rows_without_a_finite_best_get_no_token(sampling):
    sound = torch.tensor([0.0, 5.0, -torch.inf, 1.0])
    rows = [sound.clone() for _ in range(4)] + [torch.full((4,), -torch.inf)]
    rows[1][2], rows[2][3] = torch.nan, torch.inf
    tokens = sample(torch.stack(rows), [make_context([], seed=i, **sampling) for i in range(5)]).tolist()
    assert [tokens[i] for i in (1, 2, 4)] == [NO_TOKEN] * 3
    for i in (0, 3):
        assert tokens[i] == sample(sound.unsqueeze(0), [make_context([], seed=i, **sampling)]).item()
