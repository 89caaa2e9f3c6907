"""`/v1/chat/completions` gives what the pipeline gives in its own process, to the last digit."""

import openai
import pytest
from server.test_completions import events, flat

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]


def chat(client, **body):
    response = client.post("/v1/chat/completions", json={"messages": CHAT, **body})
    assert response.status_code == 200, response.text
    return response.json()


def test_text_usage_and_reason(client, llm):
    expected = llm.chat(CHAT, max_new_tokens=8, temperature=0)
    found = chat(client, max_completion_tokens=8, temperature=0)
    [choice] = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    assert choice["finish_reason"] == expected.finish_reason
    assert found["usage"]["prompt_tokens"] == expected.usage.num_prompt_tokens
    assert found["object"] == "chat.completion"
    assert found["id"].startswith("chatcmpl-")


def test_parts_templates_and_continuations(client, llm):
    parts = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    expected = llm.chat(parts, max_new_tokens=8, temperature=0).text
    assert chat(client, messages=parts, max_tokens=8, temperature=0)["choices"][0]["message"]["content"] == expected
    begun = [*CHAT, {"role": "assistant", "content": "he is"}]
    expected = llm.chat(begun, max_new_tokens=8, temperature=0, continue_final_message=True).text
    found = chat(client, messages=begun, max_tokens=8, temperature=0, continue_final_message=True)
    assert found["choices"][0]["message"]["content"] == expected


def test_special_tokens_in_messages_are_text(client, llm):
    quoted = [{"role": "user", "content": "<|im_end|>"}]
    expected = llm.chat(quoted, max_new_tokens=1, temperature=0)
    found = chat(client, messages=quoted, max_tokens=1, temperature=0)
    assert found["usage"]["prompt_tokens"] == expected.usage.num_prompt_tokens


def test_log_probabilities(client, llm):
    expected = llm.chat(CHAT, max_new_tokens=5, seed=3, log_probabilities=2)
    values, tops, texts = flat(expected)
    [choice] = chat(client, max_tokens=5, seed=3, logprobs=True, top_logprobs=2)["choices"]
    content = choice["logprobs"]["content"]
    assert [each["logprob"] for each in content] == values
    assert [each["token"] for each in content] == [texts[token] for token in expected.tokens]
    for each, top in zip(content, tops, strict=True):
        assert [entry["logprob"] for entry in each["top_logprobs"]] == [*top.values()][:2]
        assert each["bytes"] in (None, [*each["token"].encode()])
    [choice] = chat(client, max_tokens=2, seed=3, logprobs=True)["choices"]
    assert [each["top_logprobs"] for each in choice["logprobs"]["content"]] == [[], []]


@pytest.mark.parametrize("fields", [{}, {"n": 3, "seed": 8}, {"logprobs": True, "top_logprobs": 1, "seed": 1}])
def test_a_stream_is_the_whole_in_pieces(client, fields):
    body = {"messages": CHAT, "max_tokens": 7, **(fields or {"temperature": 0})}
    whole = chat(client, **body)
    *parts, last = events(client, "/v1/chat/completions", **body, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert {part["id"] for part in parts} == {last["id"]}
    for choice in whole["choices"]:
        own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(piece["delta"].get("content", "") for piece in own) == choice["message"]["content"]
        assert own[-1]["delta"] == {}
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"]:
            found = [each for piece in own if piece["logprobs"] for each in piece["logprobs"]["content"]]
            assert found == choice["logprobs"]["content"]


def test_the_client_of_openai(server, llm):
    expected = llm.chat(CHAT, max_new_tokens=6, temperature=0).text
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["tiny", "tiny-alias"]
        asked = {"model": "tiny", "messages": CHAT, "max_completion_tokens": 6, "temperature": 0}
        assert client.chat.completions.create(**asked).choices[0].message.content == expected
        pieces = [*client.chat.completions.create(**asked, stream=True)]
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**{**asked, "model": "another"})
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**asked, extra_body={"temprature": 1})
        assert caught.value.param == "temprature"
        assert "Did you mean 'temperature'?" in str(caught.value)
