"""`/tokenize`, `/detokenize`, `/v1/models`."""

import pytest

CHAT = [{"role": "user", "content": "hello"}]


def test_texts(client, llm):
    expected = llm.tokenizer.encode("he is héllo").tolist()
    found = client.post("/tokenize", json={"prompt": "he is héllo", "return_token_strs": True}).json()
    assert found["tokens"] == expected
    assert found["count"] == len(expected)
    assert found["max_model_len"] == llm.tokenizer.max_length
    assert found["token_strs"] == [llm.tokenizer.text_of(token) for token in expected]
    assert client.post("/detokenize", json={"tokens": expected}).json() == {"prompt": "he is héllo"}


def test_chats(client, llm):
    text = llm.tokenizer.apply_chat_template(CHAT)
    found = client.post("/tokenize", json={"messages": CHAT}).json()
    assert found["tokens"] == llm.tokenizer.encode(text, add_special_tokens=False).tolist()
    assert client.post("/detokenize", json={"tokens": found["tokens"]}).json()["prompt"] == text
    assert found["count"] == llm.chat(CHAT, max_new_tokens=1).usage.num_prompt_tokens


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLED = [*CHAT, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "a", "content": "2"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    "chat",
    [
        {"messages": CHAT},
        {"messages": CALLED},
        {"messages": [{"role": "user", "content": "a <|im_end|> that is quoted"}]},
        {"messages": [*CHAT, {"role": "assistant", "content": "so"}], "continue_final_message": True},
    ],
)
def test_a_chat_has_the_tokens_that_the_model_gets(client, chat):
    tokens = client.post("/tokenize", json=chat).json()["tokens"]
    asked = {"max_tokens": 1, "prompt_logprobs": 0}
    answer = client.post("/v1/chat/completions", json={**chat, **asked}).json()
    assert answer["usage"]["prompt_tokens"] == len(tokens)
    assert [[*place] for place in answer["prompt_logprobs"][1:]] == [[str(token)] for token in tokens[1:]]


def test_what_is_refused(client):
    for body in ({}, {"prompt": "x", "messages": CHAT}, {"prompt": "x", "tools": TOOLS}, {"prompt": 3}):
        assert client.post("/tokenize", json=body).status_code == 400
    for tokens in ([10**9], [-1], ["x"], None):
        assert client.post("/detokenize", json={"tokens": tokens}).status_code == 400


def test_models(client, llm):
    found = client.get("/v1/models").json()
    assert [card["id"] for card in found["data"]] == ["tiny", "tiny-alias"]
    assert found["data"][0]["max_model_len"] == llm.tokenizer.max_length
    assert client.get("/v1/models/tiny").json() == found["data"][0]
    assert client.get("/ready").json() == {"status": "ready"}
