"""How many requests may wait: those whose prompts are still being made are among them."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from server.test_disconnects import until

from pipezoo_core.errors import EmptyPromptError

NUM_PLACES = 2
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
ASKED = {
    "/v1/completions": {"prompt": "the", "max_tokens": 2},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/tokenize": {"prompt": "the"},
    "/detokenize": {"tokens": [1, 2]},
}


@pytest.fixture
def held(server, monkeypatch):
    """Prompts and texts of tokens are made when this is set."""
    goes_on = threading.Event()
    model = server.server.service.model
    in_thread = model.in_thread

    async def waiting(work):
        return await in_thread(lambda: (goes_on.wait(60), work())[1])

    monkeypatch.setattr(model, "in_thread", waiting)
    monkeypatch.setattr(server.engine._room, "_max_queue", NUM_PLACES - server.engine.facts.max_batch_size)
    yield goes_on
    goes_on.set()


@pytest.mark.parametrize("is_stream", [False, True])
def test_requests_whose_prompts_are_being_made_have_places(server, client, held, is_stream):
    with ThreadPoolExecutor(NUM_PLACES) as threads:
        body = {**CHAT, "stream": is_stream}
        taken = [threads.submit(client.post, "/v1/chat/completions", json=body) for _ in range(NUM_PLACES)]
        until(lambda: server.engine.num_answers == NUM_PLACES)
        for path, fields in ASKED.items():
            refused = client.post(path, json={**fields, "stream": True} if is_stream and "/v1/" in path else fields)
            assert refused.status_code == 429, path
            assert refused.json()["error"]["code"] == "queue_full"
            assert "retry-after" in refused.headers
        assert server.engine.counts.num_running == server.engine.counts.num_waiting == 0
        held.set()
        assert [each.result().status_code for each in taken] == [200] * NUM_PLACES
    for path, fields in ASKED.items():
        assert client.post(path, json=fields).status_code == 200, path


def test_prompts_beside_one_that_fails_are_made_no_longer(server, client, monkeypatch):
    """They would be made without a place."""
    given_up = []

    async def prompt_tokens(request, _):
        if request.prompt == "":
            await asyncio.sleep(0)
            raise EmptyPromptError("a prompt is empty")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            given_up.append(request.prompt)
            raise

    monkeypatch.setattr(server.server.service.model, "prompt_tokens", prompt_tokens)
    response = client.post("/v1/completions", json={"prompt": ["a", "", "b"], "max_tokens": 1})
    assert response.status_code == 400, response.text
    until(lambda: sorted(given_up) == ["a", "b"])
