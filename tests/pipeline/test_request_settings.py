"""Settings of a request through the pipeline: several answers, barred words, processors, truncation, salt, priority."""

import asyncio

import pytest
import torch
from gguf_files import END, TOKENS

from pipezoo_core.errors import InvalidSettingError, LogitsProcessorError, PromptTooLongError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams

GREEDY = {"temperature": 0.0, "max_new_tokens": 12, "ignore_eos": True}
SAMPLED = {"temperature": 1.0, "seed": 7, "max_new_tokens": 12, "ignore_eos": True}
LONG = {**GREEDY, "max_new_tokens": 200}
PROMPT = TextGenerationRequest(prompt=list(range(40)))


def tokens_of(outputs):
    return [output.tokens for output in outputs]


def test_several_answers_are_those_of_as_many_requests(load_tiny):
    llm = load_tiny()
    alone = [tokens_of(llm.generate(["hello", "he"], **{**SAMPLED, "seed": 7 + i})) for i in range(3)]
    outputs = llm.generate(["hello", "he"], **SAMPLED, n=3)
    for prompt, output in enumerate(outputs):
        assert [answer.index for answer in output.answers] == [0, 1, 2]
        assert {answer.request_id for answer in output.answers} == {output.request_id}
        assert tokens_of(output.answers) == [of_seed[prompt] for of_seed in alone]
        assert [answer.usage.num_generated_tokens for answer in output.answers] == [12] * 3
    assert len({tuple(answer.tokens) for answer in llm.generate("hello", temperature=1.0, n=5)[0].answers}) > 1
    assert llm.generate("hello", **SAMPLED)[0].others == ()


def test_several_answers_share_the_pages_of_their_prompt(load_tiny):
    llm = load_tiny()
    fed = []
    execute = llm.model.execute
    llm.model.execute = lambda inputs: (fed.append(len(inputs.tokens)), execute(inputs))[1]
    output = llm.generate(PROMPT, **SAMPLED, n=4)[0]
    assert [answer.usage.num_cached_tokens for answer in output.answers] == [0, 32, 32, 32]
    assert sum(fed) == 40 + 3 * 8 + 4 * 11


def test_several_answers_of_a_task_and_to_a_chat(load_tiny):
    llm = load_tiny()
    expected = tokens_of(llm.generate(PROMPT, **SAMPLED, n=3)[0].answers)
    request = TextGenerationRequest(prompt=PROMPT.prompt)
    found = [[], [], []]

    async def run():
        async for outputs in llm.generate_async(request, **SAMPLED, n=3):
            for output in outputs:
                assert output.request_id == request.request_id
                found[output.index] += output.tokens

    asyncio.run(run())
    assert found == expected
    chat = [{"role": "user", "content": "hello"}]
    of_task = asyncio.run(llm.chat_async(chat, **SAMPLED, n=2))
    assert tokens_of(of_task.answers) == tokens_of(llm.chat(chat, **SAMPLED, n=2).answers)
    with pytest.raises(InvalidSettingError, match="a stream has one answer"):
        llm.stream("hello", **SAMPLED, n=2)


@pytest.mark.parametrize("way", ["cancel", "release"])
def test_a_request_is_ended_with_all_its_answers(load_tiny, way):
    llm = load_tiny()
    request = TextGenerationRequest(prompt="hello")
    last = {}

    async def run():
        async for outputs in llm.generate_async(request, **{**SAMPLED, "max_new_tokens": 200}, n=3):
            last.update({output.index: output.finish_reason for output in outputs})
            if len(last) == 3:
                getattr(llm, way)(request.request_id)

    asyncio.run(run())
    assert last == {0: "cancelled", 1: "cancelled", 2: "cancelled"}


@pytest.mark.parametrize("way", ["cancel", "release"])
def test_all_answers_are_ended_also_where_another_call_has_taken_the_id(load_tiny, way):
    llm = load_tiny()
    request = TextGenerationRequest(prompt="hello")
    settings = {**SAMPLED, "max_new_tokens": 200, "n": 3}
    reasons = {"first": {}, "second": {}}

    async def run(name, prompts):
        async for outputs in llm.generate_async(prompts, **settings):
            reasons[name] |= {output.index: output.finish_reason for output in outputs}
            if all(len(of_call) == 3 for of_call in reasons.values()):
                getattr(llm, way)(request.request_id)

    async def main():
        first = asyncio.create_task(run("first", request))
        async with asyncio.timeout(60):
            while not reasons["first"]:
                await asyncio.sleep(0)
        await asyncio.gather(first, run("second", [request]))

    asyncio.run(main())
    assert reasons["first"] == {0: "cancelled", 1: "cancelled", 2: "cancelled"}
    assert reasons["second"] == {0: "error", 1: "cancelled", 2: "cancelled"}
    assert llm._several == set()


def test_bad_words_are_those_of_transformers(load_tiny, tiny_reference):
    llm = load_tiny()
    prompt, settings = list(range(60, 80)), {**GREEDY, "max_new_tokens": 40}
    free = llm.generate(TextGenerationRequest(prompt=prompt), **settings)[0]
    letters = [llm.tokenizer.text_of(token) for token in free.tokens if llm.tokenizer.text_of(token).isascii()]
    words = [*letters[:2], "never this"]
    spelled = [spelling for text in words for spelling in llm.tokenizer._codec.spellings(text)]
    ids = torch.tensor([prompt])
    expected = tiny_reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, eos_token_id=None,
        pad_token_id=0, bad_words_ids=spelled,
    )  # fmt: skip
    output = llm.generate(TextGenerationRequest(prompt=prompt), **settings, bad_words=words)[0]
    assert output.tokens == expected[0, len(prompt) :].tolist() != free.tokens
    assert not any(word in output.text for word in words)


def test_only_allowed_tokens_are_generated(load_tiny):
    llm = load_tiny()
    allowed = [5, 80, 99, 120]
    for settings in (GREEDY, SAMPLED):
        assert set(llm.generate("hello", **settings, allowed_token_ids=allowed)[0].tokens) <= set(allowed)
    output = llm.generate("hello", temperature=0.0, allowed_token_ids=[END])[0]
    assert (output.tokens, output.finish_reason) == ([END], "stop")
    with pytest.raises(ValueError, match="allowed_token_ids is not in the vocabulary"):
        llm.generate("hello", allowed_token_ids=[len(TOKENS)])


TEXTS = [
    *("yes", 'a "quoted" one', "back\\slash", "a\nb\tc", "é 😀", "\x01\x7f", " ", "[x]* {2} (y|z) /i", "\\n", "\u2028"),
    "yes and more",
]


@pytest.mark.matrix
@pytest.mark.parametrize("text", TEXTS)
def test_a_choice_is_one_of_its_texts(load_tiny, text):
    llm = load_tiny()
    assert llm.generate("hello", temperature=1.0, choice=[text])[0].text == text
    for seed in range(3):
        output = llm.generate("hello", temperature=1.0, seed=seed, choice=TEXTS)[0]
        assert output.text in TEXTS
        assert output.finish_reason == "stop"


def test_a_processor_in_a_batch(load_tiny, greedy):
    """One chooses the next letter of a text, one fails at its third token, and one request has none."""
    llm = load_tiny()
    wanted = [TOKENS.index(letter) for letter in "abcabcabcabc"]

    def spell(tokens, logits):
        logits[wanted[len(tokens) - 4]] += 1000.0
        return logits

    def fail(tokens, logits):
        assert len(tokens) < 4 + 2, "too many"
        return logits

    plain, spelled, failed = llm.generate(
        [
            TextGenerationRequest(prompt="hello", sampling_params=SamplingParams(**GREEDY, **own))
            for own in ({}, {"logits_processors": [spell]}, {"logits_processors": [fail]})
        ]
    )
    prompt = [TOKENS.index(piece) for piece in ("he", "l", "l", "o")]
    assert plain.tokens == greedy(prompt, 12)
    assert spelled.tokens == wanted
    assert isinstance(failed.error, LogitsProcessorError)
    assert (failed.tokens, failed.finish_reason) == (plain.tokens[:2], "error")
    assert "too many" in str(failed.error)


def test_the_text_ends_with_the_stop_text_or_before_it(load_tiny):
    llm = load_tiny()
    whole = llm.generate("hello", **GREEDY)[0]
    stop = whole.text[4:6]
    at = whole.text.index(stop)
    for include in (False, True):
        settings = {**GREEDY, "stop": stop, "include_stop_str_in_output": include}
        expected = whole.text[: at + len(stop) * include]
        assert llm.generate("hello", **settings)[0].text == "".join(llm.stream("hello", **settings)) == expected
    token = whole.tokens[5]
    settings = {**GREEDY, "stop_token_ids": [token], "include_stop_str_in_output": True}
    included = llm.generate("hello", **settings)[0]
    assert whole.text.startswith(included.text)
    before = llm.generate("hello", **{**settings, "include_stop_str_in_output": False})[0]
    assert included.text == before.text + llm.tokenizer.text_of(token)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("name", ["<|im_start|>", "<|im_end|>"])
def test_the_text_ends_with_a_special_stop_token_or_before_it(load_tiny, name, include, skip):
    """Also one that the model ends with itself, and one within a stop text. Without being asked for it is left out."""
    llm = load_tiny()
    token, first, second = (TOKENS.index(text) for text in (name, "a", "b"))

    def spell(tokens, logits):
        logits[[first, second, token][len(tokens) - 4]] += 1000.0
        return logits

    settings = {
        "temperature": 0.0,
        "max_new_tokens": 3,
        "logits_processors": [spell],
        "skip_special_tokens": skip,
        "include_stop_str_in_output": include,
    }
    stops = {token: "ab", f"b{name}": "a"} if name != "<|im_end|>" else {token: "ab"}
    for stop, before in stops.items():
        own = {"stop_token_ids": [stop]} if stop == token else {"stop": stop}
        output = llm.generate("hello", **settings, **own)[0]
        assert (output.tokens, output.stop_reason) == ([first, second, token], stop)
        expected = "ab" + name if include else before
        assert output.text == expected == "".join(llm.stream("hello", **settings, **own))
    if name == "<|im_end|>":
        assert llm.generate("hello", **settings)[0].text == ("ab" if skip or not include else "ab" + name)


def test_special_tokens_are_text_on_demand(load_tiny):
    llm = load_tiny()
    start = TOKENS.index("<|im_start|>")
    settings = {**GREEDY, "max_new_tokens": 3, "allowed_token_ids": [start]}
    assert llm.generate("hello", **settings)[0].text == ""
    shown = llm.generate("hello", **settings, skip_special_tokens=False)[0].text
    assert shown == llm.tokenizer.delegate.decode([start] * 3) == "<|im_start|>" * 3
    output = llm.generate("hello", **settings, skip_special_tokens=False, stop="start|><|")[0]
    assert (output.text, output.stop_reason) == ("<|im_", "start|><|")


@pytest.mark.parametrize("num", [1, 5, 39, 40, 41, 1000])
def test_a_prompt_is_cut_to_its_last_tokens(load_tiny, num):
    llm = load_tiny()
    kept = TextGenerationRequest(prompt=PROMPT.prompt[-num:])
    output = llm.generate(PROMPT, **GREEDY, truncate_prompt_tokens=num)[0]
    assert output.tokens == llm.generate(kept, **GREEDY)[0].tokens
    assert output.usage.num_prompt_tokens == min(num, 40)


def test_a_prompt_is_cut_to_what_the_context_holds(load_tiny):
    llm = load_tiny(max_length=30)
    with pytest.raises(PromptTooLongError):
        llm.generate(PROMPT, **GREEDY)
    with pytest.raises(PromptTooLongError):
        llm.generate(PROMPT, **GREEDY, truncate_prompt_tokens=30)
    output = llm.generate(PROMPT, **GREEDY, truncate_prompt_tokens=-1)[0]
    assert (output.usage.num_prompt_tokens, len(output.tokens)) == (18, 12)
    output = llm.generate("h" * 10**4, temperature=0.0, ignore_eos=True, truncate_prompt_tokens=-1)[0]
    assert (output.usage.num_prompt_tokens, len(output.tokens)) == (29, 1)


def test_requests_of_another_salt_share_no_pages(load_tiny):
    llm = load_tiny()
    cached, answers = {}, set()
    for name, salt in {"a": "one", "b": "two", "c": None, "d": "one", "e": None, "f": "two"}.items():
        output = llm.generate(PROMPT, **GREEDY, cache_salt=salt)[0]
        cached[name] = output.usage.num_cached_tokens
        answers.add(tuple(output.tokens))
    assert cached == {"a": 0, "b": 0, "c": 0, "d": 32, "e": 32, "f": 32}
    assert len(answers) == 1


def test_those_that_wait_begin_by_priority(load_tiny):
    llm = load_tiny(max_batch_size=1)
    priorities = [3, 0, -5, 3, 7, 0, -5]
    requests = [
        TextGenerationRequest(prompt=[10 + i], sampling_params=SamplingParams(**GREEDY, priority=priority))
        for i, priority in enumerate(priorities)
    ]
    outputs = llm.generate(requests)
    begun = sorted(range(len(outputs)), key=lambda i: outputs[i].timing.first_token)
    assert begun == sorted(range(len(outputs)), key=lambda i: (priorities[i], i))
    assert tokens_of(outputs) == [llm.generate(request)[0].tokens for request in requests]
