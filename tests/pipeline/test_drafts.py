"""Drafts change no answer, whether they come true or not, and whatever a request asks for beside them."""

import random
import shutil
import weakref

import pytest
from tiny_models import cache_memory, make_llama

from pipezoo_core.context import TextContext, TextGenerationInputs
from pipezoo_core.drafting import Drafter, Guess, StepBalance, StepCosts, StepTimes
from pipezoo_core.pipeline.draft_rows import DraftRows
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_params import NUM_ECHOED_AT_ONCE, SamplingParams
from pipezoo_core.scheduling.drafts import add_drafts

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


@pytest.fixture(autouse=True)
def noted(monkeypatch):
    """Requests, rows and seconds of the steps that were measured; what was measured decides nothing here."""
    steps = []
    monkeypatch.setattr(StepTimes, "note", lambda times, *step: steps.append(step))
    return steps


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


@pytest.mark.matrix
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
        pytest.param({"devices": ["cpu", "cpu"], "device": "auto"}, marks=pytest.mark.slow),
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


@pytest.mark.matrix
@pytest.mark.parametrize("max_batch_tokens", [16, 1024])
def test_of_each_plugin(load_tiny, of_each_plugin, guesses, max_batch_tokens):
    """Mistral's pages expire behind its window."""
    _, folder = of_each_plugin
    wanted = [TextGenerationRequest(prompt=prompt) for prompt in PROMPTS[4:10]]
    expected = [output.tokens for output in load_tiny(folder).generate(wanted, **COMMON)]
    guesses += [request.prompt + tokens for request, tokens in zip(wanted, expected, strict=True)]
    llm = load_tiny(folder, speculative="lookup", max_batch_tokens=max_batch_tokens)
    outputs = llm.generate(wanted, **COMMON)
    assert [output.tokens for output in outputs] == expected
    assert sum(output.usage.num_accepted_tokens for output in outputs) > 20


@pytest.mark.slow
def test_with_adapters(load_tiny, tiny_reference, tmp_path, guesses):
    from lora.peft_adapters import save_adapter

    save_adapter(tiny_reference, tmp_path, r=4)

    def answers(**settings):
        llm = load_tiny(lora_paths=f"a={tmp_path}", **settings)
        pairs = zip(PROMPTS[:8], ["a", None] * 4, strict=True)
        wanted = [TextGenerationRequest(prompt=prompt, lora=name) for prompt, name in pairs]
        return llm.generate(wanted, **COMMON)

    expected = [output.tokens for output in answers()]
    guesses += [prompt + tokens for prompt, tokens in zip(PROMPTS[:8], expected, strict=True)]
    outputs = answers(speculative="lookup")
    assert [output.tokens for output in outputs] == expected
    assert sum(output.usage.num_accepted_tokens for output in outputs) > 20


def test_a_grammar_knows_nothing_of_tokens_that_the_tokenizer_lacks(load_tiny, tiny_folder, tmp_path):
    """Of a head that is padded; a prompt that was made elsewhere may have them."""
    make_llama(vocab_size=320).save_pretrained(tmp_path)
    for path in tiny_folder.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    answers = []
    for speculative in ("off", "lookup"):
        llm = load_tiny(tmp_path, speculative=speculative)
        [letter] = llm.tokenizer.encode("a", add_special_tokens=False).tolist()
        request = TextGenerationRequest(prompt=[letter, 300] * 6)
        answers += said(llm.generate([request], max_new_tokens=12, temperature=0.0, regex="a{12}"))
    assert answers[0] == answers[1]
    assert answers[0][1] == "a" * 12


def test_an_answer_that_repeats_itself_takes_fewer_steps(load_tiny):
    """With its own guesses, which nobody has written for the test."""
    settings = {"max_new_tokens": 60, "temperature": 0.0, "ignore_eos": True, "logit_bias": {7: 9.0, 8: 9.0, 9: 9.0}}
    request = TextGenerationRequest(prompt=[7, 8, 9] * 6)
    steps, answers = [], []
    for speculative in ("off", "lookup"):
        llm = load_tiny(speculative=speculative)
        schedule, count = llm.scheduler.schedule, []
        llm.scheduler.schedule = lambda schedule=schedule, count=count: (count.append(1), schedule())[1]
        [output] = llm.generate([request], **settings)
        steps.append(len(count))
        answers.append(output.tokens)
    assert answers[0] == answers[1]
    assert steps[0] == 60
    assert steps[1] + output.usage.num_accepted_tokens == 60
    assert 5 < output.usage.num_accepted_tokens <= output.usage.num_draft_tokens


def test_several_steps_at_once(load_tiny):
    """Of which the first has a draft: the second is fed what came of all of it."""
    settings = {"max_new_tokens": 40, "temperature": 0.0, "ignore_eos": True, "logit_bias": {7: 9.0, 8: 9.0, 9: 9.0}}
    params = SamplingParams(**settings)
    answers = []
    for speculative in ("off", "lookup"):
        llm = load_tiny(speculative=speculative)
        request = TextGenerationRequest(prompt=[7, 8, 9] * 6, request_id="several", sampling_params=params)
        context = llm.tokenizer.new_context(request)
        llm.scheduler.add(context)
        while not context.status.is_done:
            llm.execute(TextGenerationInputs(llm.scheduler.schedule().batches, num_steps=3))
        answers.append(context.generated_tokens)
        llm.scheduler.remove("several")
        llm.release("several")
    assert answers[0] == answers[1]
    assert context.num_accepted_tokens > 5


def test_a_wrong_draft_takes_no_page_that_another_needs(load_tiny, monkeypatch):
    """Without drafts the pages suffice to the last; with drafts that never come true all goes as it does without."""
    monkeypatch.setattr(Drafter, "guess", lambda drafter: Guess([3] * 8, 0.999))
    monkeypatch.setattr(Drafter, "greatest_rate", 0.999)
    wishes = [SamplingParams(max_new_tokens=n, temperature=0.0, ignore_eos=True, logit_bias={3: -50}) for n in (10, 18)]
    found = []
    for speculative in ("off", "lookup"):
        settings = {
            "page_size": 1,
            "kv_cache_memory": cache_memory(8),
            "max_length": 45,
            "enable_prefix_caching": False,
        }
        llm = load_tiny(speculative=speculative, **settings)
        pairs = zip([PROMPTS[4][:12], PROMPTS[6][:12], PROMPTS[11][:12]], [*wishes, wishes[1]], strict=True)
        outputs = llm.generate([TextGenerationRequest(prompt=prompt, sampling_params=own) for prompt, own in pairs])
        found.append((llm.scheduler.num_preemptions, [output.tokens for output in outputs]))
        llm.kv_managers[0].check_integrity()
    usage = [output.usage for output in outputs]
    assert found[0] == found[1]
    assert found[0][0] == 0
    assert sum(each.num_draft_tokens for each in usage) > 20
    assert sum(each.num_accepted_tokens for each in usage) == 0


def test_a_draft_without_free_pages_fills_those_that_there_are(load_tiny, monkeypatch):
    """Only what is set counts in the step's balance."""
    monkeypatch.setattr(Drafter, "guess", lambda drafter: Guess(range(20, 28), 0.999))
    monkeypatch.setattr(Drafter, "greatest_rate", 0.999)
    add, counted = StepBalance.add, []
    monkeypatch.setattr(StepBalance, "add", lambda *args: (counted.append(args[-1]), add(*args))[1])
    manager = load_tiny(kv_cache_memory=cache_memory(6), enable_prefix_caching=False).kv_managers[0]
    contexts = [
        TextContext(
            request_id=str(length), prompt_tokens=[1] * length, max_length=100, sampling_params=SamplingParams()
        )
        for length in (15, 12, 11)
    ]
    for context in contexts:  # of which each has two pages of 8 tokens
        manager.external_claim(context)
        context.set_chunk(context.num_pending)
        assert manager.maybe_reserve(context)
        context.advance(5)
        context.set_chunk(1)
    assert not manager.num_free_pages
    add_drafts(contexts, manager, StepCosts(), num_rows=3, room=16, max_chunk=64)
    assert [list(context.draft) for context in contexts] == [[], [20, 21, 22], [20, 21, 22, 23]]
    assert [context.num_draft_tokens for context in contexts] == [0, 3, 4]
    assert counted == [3, 4]
    for context in contexts:
        manager.release(context.request_id)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_wrong_draft_that_is_not_finite_ends_nothing(load_tiny, monkeypatch, bad):
    """Its last token has an embedding that no hidden state survives, and is never chosen."""
    wanted, known, answers = [TextGenerationRequest(prompt=prompt) for prompt in PROMPTS[2:8]], [], []

    def guess(drafter):
        tokens = drafter._tokens
        whole = next(each for each in known if each[: len(tokens)] == tokens)
        return Guess([*whole[len(tokens) :][:3], 251], 0.999)

    for speculative in ("off", "lookup"):
        llm = load_tiny(speculative=speculative)
        llm.model.module.model.embed_tokens.weight.data[251] = bad
        outputs = llm.generate(wanted, **COMMON, logit_bias={251: -50})
        answers.append(said(outputs))
        known += [request.prompt + output.tokens for request, output in zip(wanted, outputs, strict=True)]
        monkeypatch.setattr(Drafter, "guess", guess)
        monkeypatch.setattr(Drafter, "greatest_rate", 0.999)
    assert answers[0] == answers[1]
    assert sum(output.usage.num_draft_tokens - output.usage.num_accepted_tokens for output in outputs) > 10


def test_each_step_is_measured_with_all_its_rows(load_tiny, plain, noted):
    llm = load_tiny(speculative="lookup", max_batch_tokens=64)
    execute, steps = llm.model.execute, []

    def counting(inputs):
        steps.append((len(inputs.logit_offsets) - 1, len(inputs.tokens)))
        return execute(inputs)

    llm.model.execute = counting
    assert said(llm.generate(requests())) == plain
    assert [step[:2] for step in noted] == steps
    assert all(seconds > 0 for *_, seconds in noted)


def test_a_step_that_fails_is_not_measured(load_tiny, noted):
    llm = load_tiny(speculative="lookup")

    def failing(inputs):
        raise RuntimeError("no step")

    llm.model.execute = failing
    (output,) = llm.generate([TextGenerationRequest(prompt=PROMPTS[3])])
    assert "no step" in str(output.error)
    assert noted == []


def test_drafts_take_no_rows_of_logits_that_the_plan_does_not_count(load_tiny, plain):
    llm = load_tiny(speculative="lookup", max_batch_size=20)
    execute, rows = llm.model.execute, []

    def counting(inputs):
        rows.append(len(inputs.logit_rows))
        return execute(inputs)

    llm.model.execute = counting
    assert said(llm.generate(requests())) == plain
    assert len(PROMPTS) + 5 < max(rows) <= 20 + NUM_ECHOED_AT_ONCE


def test_a_step_has_one_copy_of_a_row_per_request(load_tiny, plain, monkeypatch):
    """Besides the logits themselves, which is what the memory plan counts."""
    llm = load_tiny(speculative="lookup")
    execute, logits_of, copies, num_made = llm.model.execute, DraftRows._logits_of, [], []

    def executing(inputs):
        outputs = execute(inputs)
        copies[:] = [weakref.ref(outputs.next_token_logits)]
        return outputs

    def making(rows, contexts):
        assert [copy() for copy in copies] == [None]
        made = logits_of(rows, contexts)
        copies[:] = [weakref.ref(made)]
        num_made.append(len(made))
        return made

    llm.model.execute = executing
    monkeypatch.setattr(DraftRows, "_logits_of", making)
    assert said(llm.generate(requests())) == plain
    assert len(num_made) > 20


@pytest.mark.slow
def test_streamed(load_tiny, plain):
    llm = load_tiny(speculative="lookup")
    for request, expected in zip(requests(), plain, strict=True):
        if not request.sampling_params.echo:
            stream = llm.stream(request)
            pieces = list(stream)
            assert "".join(pieces) == expected[1]
            assert stream.output.tokens == expected[0]
