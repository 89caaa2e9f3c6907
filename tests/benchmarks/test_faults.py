"""The script that treats a server badly, in small: what it sends, what it would notice, and a run."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace

import faults
import pytest
from serve_clients.conftest import save_model
from serving import leaving, malformed
from serving.inspected import Books

IDLE = Books(
    num_pages=9,
    num_free_pages=9,
    num_running=0,
    num_waiting=0,
    num_answers=0,
    num_begun=6,
    integrity=None,
    num_deaths=0,
)
METRICS = {
    "stop": 2,
    "length": 2,
    "abort": 2,
    "error": 0,
    "vllm:num_requests_running": 0,
    "vllm:num_requests_waiting": 0,
}


def test_a_third_of_the_clients_goes_away_and_all_kinds_are_there():
    requests = leaving.made_up(900, seed=1)
    assert requests == leaving.made_up(900, seed=1)
    assert 250 < sum(asked.leaves is not None for asked in requests) < 350
    kinds = Counter((asked.path, asked.body["stream"], asked.leaves is None, asked.is_rude) for asked in requests)
    assert len(kinds) == 3 * 2 * 2 * 2
    assert all(asked.leaves is None for asked in leaving.made_up(90, seed=1, leaving=0))


def test_most_bodies_are_broken_and_the_same_each_time():
    bodies = [*malformed.broken(500, seed=1)]
    assert bodies == [*malformed.broken(500, seed=1)]
    assert {path for path, _ in bodies} == {path for path, _ in malformed.GOOD}
    good = [json.dumps(content).encode() for _, content in malformed.GOOD]
    assert sum(body in good for _, body in bodies) < 50

    def is_json(body):
        try:
            json.loads(body)
        except ValueError:
            return False
        return True

    assert 100 < sum(is_json(body) for _, body in bodies) < 450


@pytest.mark.parametrize(
    ("books", "metrics"),
    [
        ({"num_free_pages": 8}, {}),
        ({"integrity": "page 3 is in two places"}, {}),
        ({"num_deaths": 1}, {}),
        ({"num_begun": 7}, {}),
        ({}, {"abort": 1, "error": 1}),
        ({}, {"stop": 1, "abort": 3}),
        ({}, {"vllm:num_requests_running": 1}),
        ({}, {"vllm:num_requests_waiting": 1}),
    ],
)
def test_what_is_wrong_is_noticed(books, metrics):
    assert faults.wrong(IDLE, METRICS, num_whole=4) == []
    assert len(faults.wrong(replace(IDLE, **books), METRICS | metrics, num_whole=4)) == 1


def test_answers_that_no_client_should_get_are_noticed():
    error = {"message": "no", "type": "invalid_request_error", "param": None, "code": None}
    for status, content, is_good in (
        (200, b"{}", True),
        (400, json.dumps({"error": error}).encode(), True),
        (400, b'{"detail": "no"}', False),
        (400, b"no", False),
        (500, json.dumps({"error": error}).encode(), False),
        (200, b'data: {"error": {"type": "server_error"}}', False),
    ):
        assert (malformed.wrong(status, content) is None) == is_good, content


@pytest.mark.parametrize(
    "response", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 No\r\n\r\n{}", b"", b"HTTP/1.1 200 OK"]
)
def test_an_answer_that_is_not_whole_is_a_failure(response):
    async def run():
        async def answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(response)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await leaving.ask_all(port, leaving.made_up(6, seed=1, leaving=0), num_at_once=2)

    met = asyncio.run(run())
    assert (met.num_whole, len(met.failures)) == (0, 6)


@pytest.mark.slow
@pytest.mark.alone
def test_a_small_run_finds_nothing(tmp_path, capsys):
    save_model(tmp_path)
    sizes = ["--requests", "120", "--bodies", "300", "--described", "3", "--at-once", "16"]
    assert faults.main([str(tmp_path), *sizes]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["leaving"]["whole"] + found["leaving"]["left"] == 120
    assert sum(found["broken"]["statuses"].values()) == 300
    assert found["described"]["bodies"] > 0
