"""`/v1/completions` gives what the pipeline gives in its own process, to the last digit."""

import json

import pytest

PROMPT = "he says hello to the sea"
FULL = {"prompt": PROMPT, "max_tokens": 9, "temperature": 0}


def complete(client, **body):
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def events(client, path="/v1/completions", **body):
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def flat(output):
    """The log probabilities of an output, position by position."""
    entries = output.log_probabilities
    return (
        [value for entry in entries for value in entry.token_log_probabilities],
        [top for entry in entries for top in entry.top_log_probabilities],
        {token: text for entry in entries for token, text in entry.token_texts.items()},
    )


def test_text_usage_and_reason(client, llm):
    expected = llm.generate(PROMPT, max_new_tokens=9, temperature=0)[0]
    found = complete(client, **FULL)
    assert found["object"] == "text_completion"
    assert found["model"] == "tiny"
    [choice] = found["choices"]
    assert choice["text"] == expected.text
    assert choice["finish_reason"] == expected.finish_reason == "length"
    assert found["usage"]["prompt_tokens"] == expected.usage.num_prompt_tokens
    assert found["usage"]["completion_tokens"] == 9
    assert found["usage"]["total_tokens"] == expected.usage.num_prompt_tokens + 9


def test_sixteen_tokens_unless_told_otherwise(client):
    assert complete(client, prompt=PROMPT, ignore_eos=True)["usage"]["completion_tokens"] == 16


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"seed": 7, "temperature": 0.9, "top_p": 0.8}, {}),
        ({"seed": 3, "top_k": 5, "min_p": 0.01}, {}),
        ({"seed": 3, "frequency_penalty": 1.5, "presence_penalty": 0.5}, {}),
        ({"seed": 3, "repetition_penalty": 1.7}, {}),
        ({"seed": 3, "logit_bias": {"70": 3.5}}, {"logit_bias": {70: 3.5}}),
        ({"seed": 3, "stop_token_ids": [70], "logit_bias": {"70": 100}}, {"logit_bias": {70: 100}}),
        ({"seed": 3, "stop_token_ids": [*range(99)], "min_tokens": 3}, {"min_new_tokens": 3}),
        ({"seed": 1, "allowed_token_ids": [66, 67, 68]}, {}),
        ({"seed": 1, "bad_words": ["e", "a"]}, {}),
        ({"seed": 1, "truncate_prompt_tokens": 5}, {}),
        ({"seed": 1, "structured_outputs": {"regex": "[ab]{4}"}}, {"regex": "[ab]{4}"}),
        ({"seed": 1, "structured_outputs": {"choice": ["yes", "no"]}}, {"choice": ["yes", "no"]}),
        ({"seed": 1, "structured_outputs": {"grammar": 'start: "x"+'}}, {"grammar": 'start: "x"+'}),
        ({"seed": 1, "priority": 3, "cache_salt": "x", "ignore_eos": True}, {}),
        ({"seed": 1, "skip_special_tokens": False, "allowed_token_ids": [257, 258], "ignore_eos": True}, {}),
    ],
)
def test_every_field_is_the_setting(client, llm, fields, settings):
    """A field that is not a setting's name has the setting beside it."""
    named = {name: value for name, value in fields.items() if name not in ("structured_outputs", "min_tokens")}
    expected = llm.generate(PROMPT, max_new_tokens=12, **{**named, **settings})[0]
    [choice] = complete(client, prompt=PROMPT, max_tokens=12, **fields)["choices"]
    assert choice["text"] == expected.text
    assert choice["finish_reason"] == expected.finish_reason
    assert choice["stop_reason"] == expected.stop_reason


def test_a_stop_text_ends_the_answer(client, llm):
    whole = llm.generate(PROMPT, max_new_tokens=20, seed=5)[0].text
    stop = whole[4:6]
    expected = llm.generate(PROMPT, max_new_tokens=20, seed=5, stop=[stop])[0]
    [choice] = complete(client, prompt=PROMPT, max_tokens=20, seed=5, stop=[stop])["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (expected.text, "stop", stop)
    [choice] = complete(client, prompt=PROMPT, max_tokens=20, seed=5, stop=stop, include_stop_str_in_output=True)[
        "choices"
    ]
    assert choice["text"] == expected.text + stop


def test_tokens_texts_and_several_of_each(client, llm):
    tokens = llm.tokenizer.encode(PROMPT).tolist()
    texts = [PROMPT, "the other one"]
    expected = [output.text for output in llm.generate(texts, max_new_tokens=5, temperature=0)]
    settings = {"max_tokens": 5, "temperature": 0}
    assert [c["text"] for c in complete(client, prompt=tokens, **settings)["choices"]] == expected[:1]
    found = complete(client, prompt=texts, **settings)
    assert [c["text"] for c in found["choices"]] == expected
    assert [c["index"] for c in found["choices"]] == [0, 1]
    assert found["usage"]["completion_tokens"] == 10
    second = llm.tokenizer.encode(texts[1]).tolist()
    assert [c["text"] for c in complete(client, prompt=[tokens, second], **settings)["choices"]] == expected


def test_several_answers_have_seeds_of_their_own(client, llm):
    expected = llm.generate([PROMPT, "b"], max_new_tokens=6, seed=11, n=3)
    found = complete(client, prompt=[PROMPT, "b"], max_tokens=6, seed=11, n=3)
    texts = [answer.text for output in expected for answer in output.answers]
    assert [c["text"] for c in found["choices"]] == texts
    assert [c["index"] for c in found["choices"]] == [*range(6)]
    assert found["usage"]["prompt_tokens"] == sum(output.usage.num_prompt_tokens for output in expected)
    assert found["usage"]["completion_tokens"] == sum(
        answer.usage.num_generated_tokens for output in expected for answer in output.answers
    )


def test_log_probabilities_of_answer(client, llm):
    expected = llm.generate(PROMPT, max_new_tokens=6, seed=2, log_probabilities=3)[0]
    values, tops, texts = flat(expected)
    [choice] = complete(client, prompt=PROMPT, max_tokens=6, seed=2, logprobs=3)["choices"]
    logs = choice["logprobs"]
    assert logs["token_logprobs"] == values
    assert logs["tokens"] == [texts[token] for token in expected.tokens]
    for found, wanted in zip(logs["top_logprobs"], tops, strict=True):
        assert {*found} == {texts[token] for token in wanted}
        assert max(found.values()) == max(wanted.values())


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_what_evaluators_ask(client, llm, max_tokens):
    """The prompt's log probabilities: nothing for its first token, and with no token wanted, none of an answer."""
    tokens = llm.tokenizer.encode(PROMPT).tolist()
    expected = llm.generate(PROMPT, max_new_tokens=1, temperature=0, log_probabilities=1, echo=True)[0]
    values, tops, texts = flat(expected)
    for prompt in (PROMPT, tokens):
        found = complete(client, prompt=prompt, max_tokens=max_tokens, temperature=0, logprobs=1, echo=True, seed=1234)
        [choice] = found["choices"]
        logs = choice["logprobs"]
        end = None if max_tokens else -1
        assert logs["token_logprobs"] == [None, *values[:end]]
        assert logs["top_logprobs"][0] is None
        assert [max(top.values()) for top in logs["top_logprobs"][1:]] == [max(top.values()) for top in tops[:end]]
        assert logs["tokens"] == [texts.get(t, llm.tokenizer.text_of(t)) for t in [*tokens, *expected.tokens]][:end]
        assert choice["text"] == PROMPT + (expected.text if max_tokens else "")
        assert found["usage"]["completion_tokens"] == max_tokens
        assert choice["finish_reason"] == "length"
        for token, offset in zip(logs["tokens"], logs["text_offset"], strict=True):
            if token in PROMPT:
                assert choice["text"].startswith(token, offset)


@pytest.mark.parametrize("prompt", ["é the sea", "🙂🙂", "<|im_start|>user he<|im_end|> the", "a<|im_end|>"])
def test_each_token_of_an_echo_is_where_its_offset_says(client, prompt):
    """Also behind a first character of several tokens, and behind special tokens."""
    asked = {"prompt": prompt, "max_tokens": 4, "temperature": 0, "logprobs": 0, "echo": True}
    [choice] = complete(client, **asked)["choices"]
    logs = choice["logprobs"]
    of_prompt = client.post("/tokenize", json={"prompt": prompt}).json()["count"]
    places = [*zip(logs["tokens"], logs["text_offset"], strict=True)]

    for token, offset in places[:of_prompt]:
        assert choice["text"].startswith(token, offset) or "\N{REPLACEMENT CHARACTER}" in token
    assert places[of_prompt][1] == len(prompt)
    pieces = events(client, **asked)
    assert [at for each in pieces for at in each["choices"][0]["logprobs"]["text_offset"]] == logs["text_offset"]


def test_echo_without_log_probabilities(client, llm):
    expected = llm.generate(PROMPT, max_new_tokens=4, temperature=0)[0].text
    [choice] = complete(client, prompt=PROMPT, max_tokens=4, temperature=0, echo=True)["choices"]
    assert choice["text"] == PROMPT + expected
    assert choice["logprobs"] is None


def test_prompt_logprobs(client, llm):
    expected = llm.generate(PROMPT, max_new_tokens=2, temperature=0, log_probabilities=2, echo=True)[0]
    entry = expected.log_probabilities[0]
    tokens = llm.tokenizer.encode(PROMPT).tolist()
    [choice] = complete(client, prompt=PROMPT, max_tokens=2, temperature=0, prompt_logprobs=2)["choices"]
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    assert choice["logprobs"] is None
    for place, (found, token) in enumerate(zip(rest, tokens[1:], strict=True)):
        assert found[str(token)]["logprob"] == entry.token_log_probabilities[place]
        assert found[str(token)]["rank"] == entry.token_ranks[place]
        assert {int(each) for each in found} == {*entry.top_log_probabilities[place]}


def near(value):
    """What may be computed beside other prompts than before, which changes the last digits."""
    is_number = isinstance(value, float | dict)
    return pytest.approx(value, abs=1e-4) if is_number else value


@pytest.mark.parametrize("fields", [{}, {"logprobs": 2, "echo": True}, {"n": 2, "seed": 4, "temperature": 1.0}])
def test_a_stream_is_the_whole_in_pieces(client, fields):
    body = {**FULL, "prompt": [PROMPT, "héllo ☃"], **fields}
    whole = complete(client, **body)
    chunks = events(client, **body, stream_options={"include_usage": True})
    *parts, last = chunks
    assert last["choices"] == []
    assert {**last["usage"], "prompt_tokens_details": None} == {**whole["usage"], "prompt_tokens_details": None}
    assert all(part["usage"] is None for part in parts)
    for choice in whole["choices"]:
        own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        assert [piece["finish_reason"] for piece in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"]:
            for name, values in choice["logprobs"].items():
                found = [each for piece in own if piece["logprobs"] for each in piece["logprobs"][name]]
                assert found == [near(value) for value in values]


def test_json_by_schema(client):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    for fields in (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"structured_outputs": {"json": schema}},
    ):
        [choice] = complete(client, prompt=PROMPT, max_tokens=60, seed=1, **fields)["choices"]
        assert [*json.loads(choice["text"])] == ["a"]


def test_the_echo_of_a_prompt_that_was_cut_is_what_is_left_of_it(client):
    asked = {"max_tokens": 2, "temperature": 0, "echo": True, "truncate_prompt_tokens": 3}
    [cut] = complete(client, prompt=PROMPT, **asked, logprobs=1)["choices"]
    tokens = client.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    kept = client.post("/detokenize", json={"tokens": tokens[-3:]}).json()["prompt"]
    assert len(tokens) > 3
    assert cut["text"].startswith(kept)
    assert "".join(cut["logprobs"]["tokens"]) == cut["text"]
    assert cut["logprobs"]["text_offset"][3] == len(kept)
    [alone] = complete(client, prompt=PROMPT, **asked)["choices"]
    assert alone["text"] == cut["text"]
    [whole] = complete(client, prompt=PROMPT, **asked | {"truncate_prompt_tokens": 99})["choices"]
    assert whole["text"].startswith(PROMPT)
