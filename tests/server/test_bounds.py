"""Whatever a client sends has a bound, and what is beyond is refused by name, with a status of the client's."""

from contextlib import suppress

import httpx
import pytest
from fastapi.exceptions import RequestValidationError

pytestmark = pytest.mark.matrix

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}
PROMPT = {"prompt": "hi", "max_tokens": 1}


def refused(client, path, body, status=400, **raw):
    response = client.post(path, **(raw or {"json": body}))
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert {*error} == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 10**6, "temperature": 1}, "n"),
        ({"n": 0}, "n"),
        ({"logprobs": 129}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 3, "prompt_logprobs": -1}, "prompt_logprobs"),
        ({"logprobs": 129, "prompt_logprobs": 3}, "logprobs"),
        ({"prompt_logprobs": 10**9}, "prompt_logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 10**30}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 1e9}, "repetition_penalty"),
        ({"frequency_penalty": 99}, "frequency_penalty"),
        ({"presence_penalty": -99}, "presence_penalty"),
        ({"seed": 2**64}, "seed"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"min_tokens": 5}, "min_tokens"),
        ({"stop": ["x"] * 129}, "stop"),
        ({"stop": "x" * 1025}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop_token_ids": [0] * 5000}, "stop_token_ids"),
        ({"stop_token_ids": [10**6]}, None),
        ({"stop_token_ids": [10**30]}, "stop_token_ids.0"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids.0"),
        ({"allowed_token_ids": [10**30]}, "allowed_token_ids.0"),
        ({"prompt": [10**30]}, None),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"bad_words": ["x"] * 129}, "bad_words"),
        ({"logit_bias": {"1000000": 1}}, None),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(5000)}}, "logit_bias"),
        ({"logit_bias": {"1": 1e9}}, "logit_bias"),
        ({"cache_salt": "x" * 1025}, "cache_salt"),
        ({"priority": 2**31}, "priority"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"structured_outputs": {"regex": "("}}, None),
        ({"structured_outputs": {"regex": "(" * 200_000}}, None),
        ({"structured_outputs": {"grammar": "start: " + "a" * 200_000}}, None),
        ({"structured_outputs": {"choice": ["x"] * 1025}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, None),
        ({"structured_outputs": {"json": "no JSON"}}, "structured_outputs.json"),
        ({"structured_outputs": {"regx": "a"}}, "structured_outputs.regx"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"prompt": ["x"] * 1025}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, None),
        ({"prompt": [[]]}, None),
        ({"prompt": [10**9]}, None),
        ({"prompt": [-1]}, None),
        ({"prompt": [1] * 300}, None),
        ({"prompt": [1] * 256}, None),
        ({"prompt": "word " * 100_000}, None),
        ({"prompt": None}, "prompt"),
        ({"stream_options": {"include": True}}, "stream_options.include"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": "two"}, "n"),
        ({"n": True}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"x" * 5000: 1}, None),
    ],
)  # fmt: skip
def test_completions(client, fields, param):
    error = refused(client, "/v1/completions", {**PROMPT, **fields})
    if param is not None:
        assert error["param"] == param
    assert len(error["message"]) < 2000


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, None),
        ({"messages": [{"role": "user"}]}, None),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"content": "x", "role": None}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "contents": "y"}]}, "messages.0.contents"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": "x" * 20_000}]}, None),
        ({"messages": [{"role": "user", "content": "x"}] * 70_000}, None),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"chat_template_kwargs": {"messages": []}}, None),
        ({"tools": [{"type": "web_search", "size": 1}]}, "tools.0.type"),
        ({"tools": [{"type": "web_search", "function": {"name": "f", "bad": 1}}]}, "tools.0.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 1000}, "top_logprobs"),
        ({"logprobs": True, "prompt_logprobs": 1000}, "prompt_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ],
)  # fmt: skip
def test_chats(client, fields, param):
    error = refused(client, "/v1/chat/completions", {**CHAT, **fields})
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": NaN}',
        b'{"prompt": "hi", "temperature": Infinity}',
        b'{"prompt": "hi", "seed": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        b"null",
        b"1",
        b'"text"',
    ],
)
def test_bodies_that_are_none(client, content):
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        refused(client, path, None, content=content, headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    ("fields", "param", "allowed"),
    [
        ({"prompt": 5.0}, "prompt", ["string", "list"]),
        ({"prompt": [True]}, "prompt.0", ["string", "integer", "list"]),
        ({"stop": 3}, "stop", ["string", "list"]),
        ({"prompt": [1, "a"]}, "prompt.1", ["integer"]),
        ({"prompt": ["a", 1]}, "prompt.1", ["string"]),
        ({"prompt": [[1], "a"]}, "prompt.1", ["list"]),
        ({"prompt": [[1], [2, "a"]]}, "prompt.1.1", ["integer"]),
    ],
)
def test_all_types_that_a_field_may_have_are_told(client, fields, param, allowed):
    error = refused(client, "/v1/completions", {**PROMPT, **fields})
    assert error["param"] == param
    assert error["message"].endswith(f"allowed: {' or '.join(f'a valid {name}' for name in allowed)})")


@pytest.mark.parametrize(
    "item", ["x", None, [], 5, {"type": 5}, {"type": []}, {"type": "x"}, {"type": None, "role": 1}]
)
def test_what_is_said_of_an_item_is_about_the_item(client, item):
    """And not about our code, or about one of the types that it might have had."""
    error = refused(client, "/v1/responses", {"input": [item]})
    is_message = item == {"type": None, "role": 1}
    assert error["param"] == ("input.0.role" if is_message else "input.0")
    assert ("an object" in error["message"]) == (not isinstance(item, dict))
    assert not any(word in error["message"] for word in ("_kind", "instance", "Item", "discriminator"))


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({}, "tool_choice.type"),
        ({"type": "function"}, "tool_choice.function"),
        ({"type": "function", "function": None}, "tool_choice.function"),
        ({"type": "function", "function": {}}, "tool_choice.function.name"),
        ({"type": "custom", "function": {"name": "f", "bad": 1}}, "tool_choice.type"),
    ],
)
def test_an_object_that_may_be_a_word_is_refused_as_an_object(client, choice, param):
    error = refused(client, "/v1/chat/completions", {**CHAT, "tool_choice": choice})
    assert error["param"] == param
    assert ("is missing" in error["message"]) == ("type" not in choice or choice["type"] == "function")
    assert "Field required" not in error["message"]


def test_a_word_that_may_be_an_object(client):
    error = refused(client, "/v1/chat/completions", {**CHAT, "tool_choice": "sometimes"})
    assert error["message"].endswith("allowed: 'none', 'auto' or 'required' or an object)")


def test_a_field_too_many_of_an_object_that_may_be_a_word_is_the_one_to_blame(client):
    choice = {"type": "function", "function": {"name": "f"}, "extra": 1}
    error = refused(client, "/v1/chat/completions", {**CHAT, "tool_choice": choice})
    assert (error["param"], error["code"]) == ("tool_choice.extra", "unknown_field")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/x-www-form-urlencoded"},  # what `curl -d` says
        {"content-type": "text/plain;application/json"},
        {"content-type": "application/jsonl"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize"])
def test_a_body_that_is_not_said_to_be_json(client, path, headers):
    error = refused(client, path, None, 415, content=b'{"prompt": "secret"}', headers=headers)
    assert error["code"] == "unsupported_body"
    assert "Content-" in error["message"]
    assert "secret" not in error["message"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/problem+json"])
def test_one_that_is(client, kind):
    assert client.post("/tokenize", content=b'{"prompt": "hi"}', headers={"content-type": kind}).status_code == 200


def test_a_body_that_is_too_large(client):
    assert refused(client, "/v1/completions", {"prompt": "x" * 2**24}, 413)["code"] == "body_too_large"
    pieces = (b"x" * 2**20 for _ in range(17))
    error = refused(client, "/v1/completions", None, 413, content=pieces, headers={"content-type": "application/json"})
    assert error["code"] == "body_too_large"


def test_addresses_methods_and_models(client):
    refused(client, "/v1/nothing", {}, 404)
    refused(client, "/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "b"}, 404)
    assert client.get("/v1/completions").status_code == 405
    assert "error" in client.get("/v1/completions").json()
    assert refused(client, "/v1/completions", {**PROMPT, "model": "another"}, 404)["code"] == "model_not_found"
    assert client.get("/v1/models/another").status_code == 404


def test_what_is_too_long_for_the_model_has_a_code(client):
    assert refused(client, "/v1/completions", {**PROMPT, "prompt": [1] * 256})["code"] == "context_length_exceeded"
    assert refused(client, "/v1/completions", {**PROMPT, "prompt": [1] * 999})["code"] == "context_length_exceeded"


def test_what_fails_before_the_first_event_of_a_stream_has_its_status(client):
    refused(client, "/v1/completions", {**PROMPT, "prompt": [1] * 256, "stream": True})
    refused(client, "/v1/completions", {**PROMPT, "structured_outputs": {"regex": "("}, "stream": True})


def test_more_answers_than_may_wait(server, client):
    most = server.engine.facts.max_batch_size + server.settings.max_queue
    response = client.post("/v1/completions", json={"prompt": ["x"] * 1024, "n": 2, "max_tokens": 1, "temperature": 1})
    assert most < 2048
    assert response.status_code == 400, "it would never do, however often it is asked"
    assert str(most) in response.json()["error"]["message"]
    assert "retry-after" not in response.headers


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("completions", b'{"prompt": [' + b"1," * 2**20 + b'"a"]}'),
        ("completions", b'{"prompt": [' + b"[1]," * 2**20 + b"[1]]}"),
        ("completions", b'{"prompt": "a", "stop": [' + b"1," * 2**20 + b"1]}"),
        ("completions", b'{"prompt": "a", "logit_bias": {' + b",".join(b'"%d":""' % i for i in range(2**18)) + b"}}"),
        ("chat/completions", b'{"messages": [' + b"1," * 2**20 + b"1]}"),
        ("chat/completions", b'{"messages": [{"role":"u","content":"x"}], "tools": [' + b"1," * 2**20 + b"1]}"),
        ("chat/completions", b'{"messages": [' + b'{"role":"u","content":"x"},' * 2**18 + b"1]}"),
        ("chat/completions", b'{"messages": [{"role": "u", "content": [' + b"1," * 2**20 + b"1]}]}"),
    ],
)
def test_a_million_mistakes_cost_no_more_than_one(client, monkeypatch, path, content):
    """Each would have an error of its own, a kilobyte and tens of microseconds."""
    counts, errors = [], RequestValidationError.errors
    monkeypatch.setattr(RequestValidationError, "errors", lambda self: counts.append(len(errors(self))) or errors(self))
    refused(client, f"/v1/{path}", None, content=content, headers={"content-type": "application/json"})
    assert max(counts) < 10


def test_headers_that_are_too_large(client):
    with suppress(httpx.TransportError):  # the connection may be closed before all of it is sent
        assert client.get("/health", headers={"X-Long": "x" * 2**20}).status_code == 400
    assert client.get("/health").status_code == 200
