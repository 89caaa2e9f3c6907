"""Clients that go away, clients that are slow, and what is left of them: nothing."""

import asyncio
import json
import random
import socket
import time

import httpx
import pytest

LONG = {"prompt": "he says", "max_tokens": 200, "ignore_eos": True, "stream": True}


def until(is_so, seconds=30):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


def open_stream(server, **fields):
    """Sends a request, and returns the connection."""
    body = json.dumps({**LONG, **fields}).encode()
    connection = socket.create_connection(server.url.removeprefix("http://").split(":"))
    lines = (
        "POST /v1/completions HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return connection


@pytest.mark.parametrize("fields", [{}, {"n": 3, "temperature": 1}, {"prompt": ["a", "b", "c"]}, {"stream": False}])
def test_one_that_goes_away_frees_its_pages(server, fields):
    with open_stream(server, **fields):
        until(lambda: server.engine.num_answers and server.engine.counts.num_running)
    until(lambda: server.engine.num_answers == 0)
    until(lambda: server.engine.counts.num_running == 0, seconds=1)
    server.assert_all_free()


@pytest.mark.slow
def test_hundreds_that_go_away_at_random_moments(server):
    """A third of them does, with every kind of request; the others get whole answers."""
    chance = random.Random(1)
    kinds = [{}, {"n": 2, "temperature": 1.0}, {"prompt": ["a", "bb"]}, {"structured_outputs": {"regex": "[a-z]*"}}]

    async def one(client, number):
        body = {**LONG, "max_tokens": chance.randint(1, 60), **chance.choice(kinds), "stream": chance.random() < 0.7}
        if chance.random() > 1 / 3:
            response = await client.post("/v1/completions", json=body)
            assert response.status_code == 200
            assert "error" not in response.text
            return 1
        try:
            await asyncio.wait_for(client.post("/v1/completions", json=body), chance.random() * 0.3)
        except (TimeoutError, httpx.HTTPError):
            return 0
        return 1

    async def all_of_them():
        gate = asyncio.Semaphore(40)

        async def gated(client, number):
            async with gate:
                return await one(client, number)

        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(gated(client, number) for number in range(600)))

    done = asyncio.run(all_of_them())
    assert 300 < sum(done) < 600
    until(lambda: server.engine.num_answers == 0)
    server.assert_all_free()
    assert not server.engine._feeds


@pytest.mark.slow
def test_a_slow_reader_stalls_nobody(server, client):
    """It reads nothing, of an answer larger than all buffers between; the engine is done with it, and with others."""
    with open_stream(server, prompt=["x"] * 40, logprobs=50, temperature=0) as slow:
        until(lambda: server.engine.counts.num_running)
        begin = time.monotonic()
        response = client.post("/v1/completions", json={"prompt": "quick", "max_tokens": 2})
        assert response.status_code == 200
        until(lambda: server.engine.counts.num_running == server.engine.counts.num_waiting == 0, seconds=60)
        assert server.engine.num_answers > 0, "the answers wait for their reader"
        assert time.monotonic() - begin < 60
        received = b""
        slow.settimeout(30)
        while b"data: [DONE]" not in received[-40:]:
            received += slow.recv(2**20)
    assert len(received) > 2**22
    events = [json.loads(line[6:]) for line in received.decode().splitlines() if line.startswith("data: {")]
    texts = [event["choices"][0]["logprobs"]["tokens"] for event in events if event["choices"][0]["index"] == 7]
    assert sum(map(len, texts)) == 200
    assert len(texts) < 200, "what had piled up came in fewer pieces"


@pytest.mark.slow
def test_five_hundred_open_streams(server):
    """All of them end, though most have to wait, and none of them is stalled by another."""

    async def one(client):
        async with client.stream("POST", "/v1/completions", json={**LONG, "max_tokens": 8}) as response:
            return [line async for line in response.aiter_lines()][-2]

    async def all_of_them():
        async with httpx.AsyncClient(
            base_url=server.url, timeout=120, limits=httpx.Limits(max_connections=None)
        ) as client:
            return await asyncio.gather(*(one(client) for _ in range(500)))

    assert asyncio.run(all_of_them()) == ["data: [DONE]"] * 500
