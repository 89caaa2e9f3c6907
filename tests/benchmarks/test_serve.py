"""The benchmark of servers, timings apart: what is sent, what is made of the answers, and a run over a small server."""

import asyncio
import itertools
import json
import statistics

import pytest
import serve
from serving import client, workload


def test_requests_arrive_at_the_rate_and_have_prompts_of_their_own():
    requests = workload.arriving(4.0, 400, seed=1)
    assert requests == workload.arriving(4.0, 400, seed=1)
    gaps = [later.start - earlier.start for earlier, later in itertools.pairwise(requests)]
    assert requests[0].start == 0
    assert 0.2 < statistics.mean(gaps) < 0.3
    assert 0.8 < statistics.stdev(gaps) / statistics.mean(gaps) < 1.2  # exponential: equal
    assert len({tuple(request.prompt[:16]) for request in requests}) == 400
    assert {request.start for request in workload.at_once(9, seed=0)} == {0.0}
    for least, _, most, lengths in (
        (*workload.PROMPT, [len(request.prompt) for request in requests]),
        (*workload.ANSWER, [request.num_tokens for request in requests]),
    ):
        assert least <= min(lengths) < statistics.median(lengths) < max(lengths) <= most


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (75, 3), (95, 4), (99, 4), (0, 1)])
def test_percentiles_are_values_that_occurred(percent, expected):
    assert serve.percentile([4, 1, 3, 2], percent) == expected


def test_only_what_came_in_time_is_goodput():
    requests = [workload.Request(start, [1], 3) for start in (0.0, 1.0, 2.0, 3.0)]
    answers = [
        client.Answer([0.5, 0.6, 0.7], 3, 0.7),
        client.Answer([1.5, 1.6, 1.7], 3, 1.7),  # late
        client.Answer([0.1, 0.9, 1.7], 3, 1.7),  # slow
        client.Answer([0.5], 0, 1.0, "gone"),
    ]
    figures = serve.figures_of(requests, answers, first=1.0, after=0.2)
    assert figures["goodput req/s"] == pytest.approx(1 / 4)
    assert figures["tok/s"] == pytest.approx(9 / 4)
    assert figures["failed"] == 1
    assert figures["first token p50 ms"] == pytest.approx(500)
    assert figures["next token p99 ms"] == pytest.approx(800)
    assert figures["gap p50 ms"] == pytest.approx(100)


class Server:
    """Answers as many words as are asked for, or as it is told, and remembers what it was sent."""

    def __init__(self, status="200 OK", short_by=0, events=()):
        self.status, self.short_by, self.events = status, short_by, events
        self.bodies = []

    async def __call__(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length:")[1].split()[0])
        body = json.loads(await reader.readexactly(size))
        self.bodies.append(body)
        writer.write(f"HTTP/1.1 {self.status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        count = body["max_tokens"] - self.short_by
        usage = {"choices": [], "usage": {"completion_tokens": count}}
        for event in [*self.events, *[{"choices": [{"text": "word "}]}] * count, usage]:
            data = f"data: {json.dumps(event)}\n\n".encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        writer.close()


def ask(server, requests):
    async def both():
        listening = await asyncio.start_server(server, "127.0.0.1", 0)
        async with listening:
            return await client.ask(listening.sockets[0].getsockname()[1], requests)

    return asyncio.run(both())


def test_each_piece_of_text_is_noted_and_tokens_are_those_the_server_counts():
    requests = [workload.Request(0.0, [7, 8], 5), workload.Request(0.05, [9], 2)]
    answers = ask(server := Server(), requests)
    assert [(len(answer.pieces), answer.num_tokens, answer.error) for answer in answers] == [(5, 5, None), (2, 2, None)]
    assert [body["prompt"] for body in server.bodies] == [[7, 8], [9]]
    assert all(0 <= answer.time_to_first_token <= answer.end for answer in answers)


@pytest.mark.parametrize(
    ("server", "error"),
    [
        (Server(status="503 Service Unavailable"), "503"),
        (Server(short_by=1), "4 tokens, not 5"),
        (Server(events=[{"error": {"message": "the engine ended"}}]), "the engine ended"),
    ],
    ids=["status", "too short", "error event"],
)
def test_what_goes_wrong_is_an_error_of_its_request(server, error):
    [answer] = ask(server, [workload.Request(0.0, [7], 5)])
    assert error in answer.error


def test_a_server_that_is_not_there_is_an_error():
    [answer] = asyncio.run(client.ask(1, [workload.Request(0.0, [7], 5)]))
    assert "ConnectionRefusedError" in answer.error
