"""What clients send that are not installed here, by their documentation: Open WebUI, and what is made for Ollama.

Ollama's page on OpenAI's API (docs.ollama.com/api/openai-compatibility) lists endpoints and fields. Open WebUI's pages
on connections say that it asks `/models`, with a key as bearer, and then for chats that are streamed; titles and tags
of chats are chats of one message that are not.
"""

from __future__ import annotations

import json

import httpx
import pytest

pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "Is it warm in Rome?"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": CITY}}
OLLAMA = {"Authorization": "Bearer ollama", "Content-Type": "application/json"}
# Every field of Ollama's list but `user`, `suffix` and `best_of`.
OLLAMA_CHAT = {
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "response_format": {"type": "json_object"},
    "seed": 7,
    "stop": ["\n\n\n"],
    "temperature": 0.8,
    "top_p": 0.9,
    "max_tokens": 12,
    "logit_bias": {"65": -100},
    "n": 1,
}
OLLAMA_COMPLETION = {name: value for name, value in OLLAMA_CHAT.items() if name != "response_format"}
WEBUI = {
    "Authorization": "Bearer any-key",
    "X-OpenWebUI-User-Name": "Some%20Body",
    "X-OpenWebUI-User-Id": "1",
    "X-OpenWebUI-User-Email": "a@b.c",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "2",
}


def events(response):
    lines = [line for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_open_webui_finds_the_model_and_chats(http):
    listed = http.get("/v1/models", headers=WEBUI).json()
    assert listed["object"] == "list"
    [model] = listed["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("tiny", "model", "pipezoo")

    chat = {
        "model": model["id"],
        "messages": [{"role": "system", "content": "Be brief."}, *QUESTION],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.0,
        "frequency_penalty": 0.2,
        "seed": 3,
        "max_tokens": 12,
    }
    response = http.post("/v1/chat/completions", json=chat, headers=WEBUI)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(response)
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 0

    answered = [*QUESTION, {"role": "assistant", "content": "Yes."}]
    title = [{"role": "user", "content": "Write a title for this chat:\n" + json.dumps(answered)}]
    for limit in ({"max_tokens": 12}, {"max_completion_tokens": 12}):
        whole = http.post("/v1/chat/completions", json={"model": "tiny", "messages": title, "stream": False, **limit})
        assert whole.json()["choices"][0]["message"]["role"] == "assistant"


def test_open_webui_lets_the_model_call_and_shows_an_error(http):
    chat = {"model": "tiny", "messages": QUESTION, "stream": True, "tools": [TOOL], "tool_choice": "required"}
    found = events(http.post("/v1/chat/completions", json={**chat, "max_tokens": 300}, headers=WEBUI))
    pieces = [piece for each in found for piece in each["choices"][0]["delta"].get("tool_calls") or []]
    assert pieces[0]["function"]["name"] == "weather"
    assert pieces[0]["id"]

    refused = http.post("/v1/chat/completions", json={**chat, "model": "another"}, headers=WEBUI)
    assert refused.status_code == 404
    assert "there is no such model here" in refused.json()["error"]["message"]


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_fields_of_ollamas_list(http, is_stream):
    stream = {"stream": True, "stream_options": {"include_usage": True}} if is_stream else {"stream": False}
    for path, fields in {
        "/v1/chat/completions": {"messages": QUESTION, **OLLAMA_CHAT},
        "/v1/completions": {"prompt": "Rome is", "echo": True, **OLLAMA_COMPLETION},
    }.items():
        response = http.post(path, json={"model": "tiny", **fields, **stream}, headers=OLLAMA)
        assert response.status_code == 200, response.text
        usage = (events(response)[-1] if is_stream else response.json())["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    listed = {"input": "Rome is", "instructions": "Be brief.", "tools": [], "temperature": 0.5, "top_p": 0.9}
    asked = {"model": "tiny", **listed, "max_output_tokens": 12, "truncation": "disabled", "stream": is_stream}
    response = http.post("/v1/responses", json=asked, headers=OLLAMA)
    assert response.status_code == 200, response.text
    assert ("response.created" in response.text) == is_stream


def test_the_other_addresses_of_ollamas_list(http):
    assert http.get("/v1/models/tiny", headers=OLLAMA).json()["id"] == "tiny"
    for method, path in (
        ("POST", "/v1/embeddings"),
        ("GET", "/api/tags"),
        ("POST", "/api/chat"),
        ("POST", "/api/show"),
    ):
        refused = http.request(method, path, json={"model": "tiny"}, headers=OLLAMA)
        assert refused.status_code == 404, path
        assert refused.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"messages": QUESTION, "user": "me"}, "user"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("/v1/completions", {"prompt": "a", "best_of": 2}, "best_of"),
        ("/v1/responses", {"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
        ("/v1/responses", {"input": "a", "conversation": "conv_1"}, "conversation"),
    ],
)
def test_what_of_ollamas_list_is_not_here_is_refused_by_its_name(http, path, fields, param):
    refused = http.post(path, json={"model": "tiny", **fields}, headers=OLLAMA)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param


@pytest.mark.parametrize("url", ["data:image/png;base64,iVBORw0KGgo=", {"url": "http://127.0.0.1:1/x.png"}])
def test_pictures_are_refused_and_not_fetched(http: httpx.Client, url):
    content = [{"type": "text", "text": "What is in it?"}, {"type": "image_url", "image_url": url}]
    chat = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 3}
    refused = http.post("/v1/chat/completions", json=chat, headers=OLLAMA)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith("messages.0.content.1")
