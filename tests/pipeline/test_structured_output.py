"""Answers that follow a JSON schema, a regex or a grammar, on a model that left alone writes noise."""

import json
import random
import re
import threading

import jsonschema
import pytest
import torch
from gguf_files import END, TOKENS
from tiny_models import cache_memory, make_llama

from pipezoo import registry
from pipezoo_core import structured_output
from pipezoo_core.context import TextGenerationInputs
from pipezoo_core.errors import (
    InvalidGrammarError,
    InvalidSettingError,
    MissingDependencyError,
    UnsupportedTokenizerError,
)
from pipezoo_core.request import (
    GenerationStatus,
    TextGenerationOutput,
    TextGenerationRequest,
)
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,6}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
REGEX = r"[0-9]{3}-(he|she)?[a-f]{2,9}"
GRAMMAR = """
start: sum
sum: product | product "+" product
product: /[0-9]{1,3}/ ("*" /[0-9]{1,2}/){0,2}
"""
PROMPT = [TOKENS.index(piece) for piece in ("he", "l", "l", "o")]
SAMPLED = {"temperature": 1.0, "seed": 3, "max_new_tokens": 200}
GREEDY = {"temperature": 0.0, "max_new_tokens": 200}


def is_valid(text, constraint):
    if "json_schema" in constraint:
        jsonschema.validate(json.loads(text), constraint["json_schema"])
        return True
    pattern = constraint.get("regex", r"\d{1,3}(\*\d{1,2}){0,2}(\+\d{1,3}(\*\d{1,2}){0,2})?")
    return re.fullmatch(pattern, text) is not None


CONSTRAINTS = {"json": {"json_schema": SCHEMA}, "regex": {"regex": REGEX}, "grammar": {"grammar": GRAMMAR}}
SETTINGS = {
    "greedy": GREEDY,
    "sampled": SAMPLED,
    "hot": {**SAMPLED, "temperature": 20.0},
    "filtered": {**SAMPLED, "top_k": 3, "top_p": 0.5, "min_p": 0.3},
    "penalties": {**GREEDY, "repetition_penalty": 1.5, "frequency_penalty": 1.0, "presence_penalty": 1.0},
    "bias": {**SAMPLED, "logit_bias": {TOKENS.index("z"): 100.0, END: 50.0}},
    "long": {**SAMPLED, "min_new_tokens": 150},
    "on and on": {**GREEDY, "ignore_eos": True},
    "logged": {**GREEDY, "log_probabilities": 2},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_answers_are_valid(load_tiny, constraint, setting):
    output = load_tiny().generate("hello", **CONSTRAINTS[constraint], **SETTINGS[setting])[0]
    assert output.final_status is GenerationStatus.END_OF_SEQUENCE
    assert is_valid(output.text, CONSTRAINTS[constraint])


def constrained_by_hand(model, language, *, bias=0.0, min_new_tokens=0):
    """Greedy tokens over a finite language: a token is allowed where some text of the language goes on with it.

    For texts that tokens can spell in one way only: of several, llguidance takes the tokenizer's where it can.
    """
    answer = []
    while True:
        text = "".join(TOKENS[token] for token in answer)
        allowed = [t for t, piece in enumerate(TOKENS) if any(one.startswith(text + piece) for one in language)]
        if not allowed:
            return answer
        if text in language and len(answer) >= min_new_tokens:
            allowed.append(END)
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT + answer])).logits[0, -1]
        logits[END] += bias
        answer.append(max(allowed, key=lambda token: logits[token].item()))
        if answer[-1] == END:
            return answer


@pytest.mark.parametrize("seed", range(12))
def test_greedy_tokens_are_the_best_allowed_ones(load_tiny, tiny_reference, seed):
    rng = random.Random(seed)
    language = ["".join(rng.choice("abc") for _ in range(rng.randrange(1, 9))) for _ in range(12)]
    settings = {"bias": rng.choice([-3.0, 0.0, 3.0]), "min_new_tokens": rng.choice([0, 3])}
    output = load_tiny().generate(
        "hello",
        **GREEDY,
        regex="|".join(language),
        logit_bias={END: settings["bias"]},
        min_new_tokens=settings["min_new_tokens"],
    )[0]
    assert output.tokens == constrained_by_hand(tiny_reference, language, **settings)
    assert output.text in language


def test_end_tokens_come_only_where_the_text_is_complete(load_tiny):
    llm = load_tiny()
    eager = {**GREEDY, "regex": "[a-c]{2,5}", "logit_bias": {END: 100.0}}
    output = llm.generate("hello", **eager)[0]
    assert (len(output.text), output.tokens[2:]) == (2, [END])
    assert len(llm.generate("hello", **eager, min_new_tokens=4)[0].text) == 4
    for last_word in ({"min_new_tokens": 20}, {"ignore_eos": True}):
        output = llm.generate("hello", **eager, **last_word)[0]
        assert (len(output.text), len(output.tokens)) == (5, 5)
        assert output.final_status is GenerationStatus.END_OF_SEQUENCE


def test_stop_tokens_of_the_request(load_tiny):
    """A special one ends the answer like an end token; one that is text cuts it like a stop text."""
    llm = load_tiny()
    special, text = TOKENS.index("<|im_start|>"), TOKENS.index("b")
    bias = {special: 100.0, text: 50.0}
    output = llm.generate("hello", **GREEDY, regex="[ac]{2,5}", stop_token_ids=[special], logit_bias=bias)[0]
    assert (len(output.text), output.tokens[-1]) == (2, special)
    output = llm.generate("hello", **GREEDY, regex="a[a-c]{5}", stop_token_ids=[text], logit_bias=bias)[0]
    assert (output.text, output.tokens[-1]) == ("a", text)
    output = llm.generate("hello", **GREEDY, regex="ab?c", stop_token_ids=[text], min_new_tokens=3, logit_bias=bias)[0]
    assert output.text == "ac"
    output = llm.generate("hello", **GREEDY, regex="abc", stop_token_ids=[text], min_new_tokens=3, logit_bias=bias)[0]
    assert output.text == "abc"


def test_several_answers_follow_their_grammar_apart(load_tiny):
    llm = load_tiny()
    alone = [llm.generate("hello", **{**SAMPLED, "seed": 3 + i}, regex=REGEX)[0].text for i in range(3)]
    output = llm.generate("hello", **SAMPLED, regex=REGEX, n=3)[0]
    assert [answer.text for answer in output.answers] == alone
    assert len(set(alone)) > 1


def test_max_new_tokens_and_stop_texts_cut(load_tiny):
    llm = load_tiny()
    whole = llm.generate("hello", **GREEDY, regex="[a-z]{20}")[0]
    cut = llm.generate("hello", **{**GREEDY, "max_new_tokens": 7}, regex="[a-z]{20}")[0]
    assert cut.tokens == whole.tokens[:7]
    assert cut.final_status is GenerationStatus.MAXIMUM_LENGTH
    stop = whole.text[5:7]
    stopped = llm.generate("hello", **GREEDY, regex="[a-z]{20}", stop=stop)[0]
    assert stopped.text == whole.text[: whole.text.find(stop)]
    just = llm.generate("hello", **{**GREEDY, "max_new_tokens": len(whole.tokens)}, regex="[a-z]{20}")[0]
    assert just.final_status is GenerationStatus.END_OF_SEQUENCE


@pytest.mark.parametrize("constraint", [{"regex": ""}, {"grammar": 'start: ""'}])
def test_an_answer_may_be_empty(load_tiny, constraint):
    output = load_tiny().generate("hello", **GREEDY, **constraint, log_probabilities=1, ignore_eos=True)[0]
    assert (output.text, output.tokens) == ("", [])
    assert output.final_status is GenerationStatus.END_OF_SEQUENCE


def requests():
    """Constrained and free ones, long and short, greedy and sampled."""
    rng = random.Random(1)
    constraints = [*CONSTRAINTS.values(), {}]
    return [
        TextGenerationRequest(
            prompt=[rng.randrange(250) for _ in range(rng.randrange(1, 40))],
            sampling_params=SamplingParams(
                temperature=i % 2, seed=i, max_new_tokens=40, ignore_eos=i % 3 == 0, **constraints[i % 4]
            ),
        )
        for i in range(16)
    ]


def results(outputs):
    return [(output.tokens, output.text, output.final_status) for output in outputs]


@pytest.fixture
def alone(load_tiny):
    llm = load_tiny(enable_prefix_caching=False)
    return [results(llm.generate(request))[0] for request in requests()]


def test_in_a_mixed_batch(load_tiny, alone):
    llm = load_tiny()
    assert results(llm.generate(requests())) == alone
    assert results(llm.generate(requests())) == alone, "on a prefix hit"
    assert llm.kv_managers[0].metrics.prefix_hit_tokens > 0


def test_in_chunks(load_tiny, alone):
    assert results(load_tiny(max_batch_tokens=5).generate(requests())) == alone


def test_after_preemption(load_tiny, alone):
    llm = load_tiny(kv_cache_memory=cache_memory(20), max_length=120)
    assert results(llm.generate(requests())) == alone
    assert llm.scheduler.num_preemptions > 0


def test_streamed(load_tiny, alone):
    llm = load_tiny()
    assert ["".join(llm.stream(request)) for request in requests()] == [text for _, text, _ in alone]


def test_from_several_threads(load_tiny, alone):
    llm = load_tiny()
    found = {}

    def work(i, request):
        found[i] = results(llm.generate(request))[0]

    threads = [threading.Thread(target=work, args=item) for item in enumerate(requests())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(len(threads))] == alone


@pytest.mark.parametrize("num_steps", [1, 4, 300])
def test_several_steps_at_once(load_tiny, alone, num_steps):
    llm = load_tiny()
    contexts = [llm.tokenizer.new_context(request) for request in requests()]
    pieces = {context.request_id: [] for context in contexts}
    while batch := {context.request_id: context for context in contexts if not context.status.is_done}:
        for context in batch.values():
            context.set_chunk(context.num_pending)
        for request_id, output in llm.execute(TextGenerationInputs([batch], num_steps=num_steps)).items():
            pieces[request_id].append(output)
    for context in contexts:
        llm.release(context.request_id)
    assert results([TextGenerationOutput.joined(of_one) for of_one in pieces.values()]) == alone


def test_a_closed_stream_and_a_cancelled_request(load_tiny):
    llm = load_tiny()
    stream = llm.stream("hello", **GREEDY, regex="[a-z]{100}")
    next(stream)
    stream.close()
    request = TextGenerationRequest(prompt="hello")
    stream = llm.stream(request, **GREEDY, regex="[a-z]{100}")
    text = next(stream)
    llm.cancel(request.request_id)
    assert len(text + "".join(stream)) < 100


def test_masks_are_computed_beside_the_model(load_tiny, monkeypatch):
    """The model's step does not end before the masks are there: a mask that waited for the model would hang."""
    llm = load_tiny()
    execute, settle, settled = llm.model.execute, structured_output.TokenMatcher.settle, threading.Event()

    def settle_and_tell(*arguments, **keywords):
        settle(*arguments, **keywords)
        settled.set()

    def wait_and_execute(inputs):
        assert settled.wait(30)
        settled.clear()
        return execute(inputs)

    monkeypatch.setattr(structured_output.TokenMatcher, "settle", settle_and_tell)
    llm.model.execute = wait_and_execute
    assert is_valid(llm.generate("hello", **GREEDY, regex=REGEX)[0].text, {"regex": REGEX})


BAD = {
    "regex, unclosed": {"regex": "[0-9"},
    "regex, backslash": {"regex": "a\\"},
    "regex, look-ahead": {"regex": "(?=a)b"},
    "regex, surrogate": {"regex": "\ud800"},
    "grammar, undefined": {"grammar": "start: nothing"},
    "grammar, malformed": {"grammar": "start: ("},
    "grammar, endless": {"grammar": "start: start"},
    "grammar, empty": {"grammar": ""},
    "schema, unknown type": {"json_schema": {"type": "nonsense"}},
    "schema, cannot be expressed": {"json_schema": {"type": "array", "uniqueItems": True}},
    "schema, cannot be satisfied": {"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}},
    "schema, elsewhere": {"json_schema": {"$ref": "https://example.org/schema"}},
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_grammar_fails_its_own_request(load_tiny, name):
    llm = load_tiny()
    free = {**GREEDY, "max_new_tokens": 12, "ignore_eos": True}
    expected = llm.generate("hello", **free)[0].text
    stream = llm.stream("hello", **free)
    first = next(stream)
    (setting,) = BAD[name]
    with pytest.raises(InvalidGrammarError, match=setting):
        llm.generate("he", **GREEDY, **BAD[name])
    with pytest.raises(InvalidGrammarError, match=setting):  # before anything is scheduled
        llm.tokenizer.new_context(TextGenerationRequest(prompt="he", sampling_params=SamplingParams(**BAD[name])))
    assert first + "".join(stream) == expected
    assert is_valid(llm.generate("hello", **GREEDY, regex=REGEX)[0].text, {"regex": REGEX})


def test_a_grammar_that_becomes_too_complex_fails_its_own_request(load_tiny, monkeypatch):
    import llguidance

    limits = llguidance.LLParserLimits
    monkeypatch.setattr(llguidance, "LLParserLimits", lambda **given: limits(**{**given, "step_max_items": 300}))
    llm = load_tiny()
    free = {**GREEDY, "max_new_tokens": 80, "ignore_eos": True}
    expected = llm.generate("hello", **free)[0].text
    stream = llm.stream("hello", **free)
    first = next(stream)
    ambiguous = {"grammar": 'start: "a" | start start', "ignore_eos": True}
    with pytest.raises(InvalidGrammarError, match="Too many items"):
        llm.generate("he", **GREEDY, **ambiguous)
    assert first + "".join(stream) == expected

    params = SamplingParams(**GREEDY, **ambiguous)
    context = llm.tokenizer.new_context(TextGenerationRequest(prompt="he", sampling_params=params))
    output = llm.execute(TextGenerationInputs([{context.request_id: context}], num_steps=200))[context.request_id]
    llm.release(context.request_id)
    assert output.final_status is GenerationStatus.ERROR
    assert output.error is context.matcher.error
    assert isinstance(context.matcher.error, InvalidGrammarError)
    assert set(output.text) == {"a"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regex": "a", "grammar": 'start: "a"'}, "'regex' excludes 'grammar'"),
        ({"json_schema": {}, "regex": "a"}, "'json_schema' excludes 'regex'"),
        ({"json_schema": "{"}, "json_schema.*text of a JSON object"),
        ({"json_schema": "[]"}, "json_schema.*text of a JSON object"),
        ({"json_schema": [["type", "object"]]}, "json_schema.*text of a JSON object"),
        ({"json_schema": {"const": float("nan")}}, "json_schema"),
        ({"json_schema": {"const": object()}}, "json_schema"),
        ({"regex": 7}, "regex"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InvalidSettingError, match=message):
        SamplingParams(**settings)


def test_what_is_wrong_with_a_schema_is_the_cause():
    with pytest.raises(InvalidSettingError) as raised:
        SamplingParams(json_schema='{"type": }')
    assert isinstance(raised.value.__cause__, json.JSONDecodeError)
    assert raised.value.__cause__.pos == 9


def test_a_schema_is_a_mapping_or_its_text():
    params = SamplingParams(json_schema=SCHEMA)
    assert params == SamplingParams(json_schema=json.dumps(SCHEMA)) == params.updated(temperature=1.0)
    assert list(json.loads(params.json_schema)["properties"]) == ["name", "age", "tags"]


def test_without_llguidance(load_tiny, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    llm = load_tiny()
    with pytest.raises(MissingDependencyError, match=r"pip install 'pipezoo-core\[structured\]'"):
        llm.generate("hello", regex="a")
    assert len(llm.generate("hello", temperature=0.0, max_new_tokens=3, ignore_eos=True)[0].tokens) == 3


def test_the_vocabulary_is_handed_over_once_and_only_when_needed(load_tiny, monkeypatch):
    made, make = [], structured_output._engine
    monkeypatch.setattr(structured_output, "_engine", lambda delegate: (made.append(delegate), make(delegate))[1])
    llm = load_tiny()
    llm.generate("hello", max_new_tokens=2)
    assert made == []
    llm.generate(["hello", "he"], **GREEDY, regex=REGEX)
    llm.generate("hello", **GREEDY, json_schema=SCHEMA)
    assert len(made) == 1


def test_a_tokenizer_that_llguidance_cannot_read(load_tiny, monkeypatch):
    llm = load_tiny()
    monkeypatch.setattr(llm.tokenizer._grammars, "_delegate", object())
    with pytest.raises(UnsupportedTokenizerError, match="llguidance"):
        llm.generate("hello", regex="a")


@pytest.mark.parametrize("change", [13, -1])
def test_a_head_of_another_size_than_the_vocabulary(tiny_folder, tmp_path, change):
    """Padding rows of the head are the most likely by far, and never taken; a row may be missing, too."""
    model = make_llama(vocab_size=len(TOKENS) + change, intermediate_size=64)
    with torch.no_grad():
        model.lm_head.weight[len(TOKENS) :] *= 1000
    model.save_pretrained(tmp_path)
    load_tokenizer(tiny_folder).save_pretrained(tmp_path)
    llm = registry.load(str(tmp_path), dtype="float32", device="cpu", kv_cache_memory="4MiB")
    if change > 0:
        assert max(llm.generate("hello", temperature=0.0, max_new_tokens=5)[0].tokens) >= len(TOKENS)
    for settings in (GREEDY, SAMPLED):
        assert is_valid(llm.generate("hello", **settings, regex=REGEX)[0].text, {"regex": REGEX})
