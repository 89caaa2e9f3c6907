"""Streams and answers as ASGI sees them: what is sent when, and what ends when the client goes away."""

import asyncio
import json

import pytest

from pipezoo.serve.engine.feed import Feed
from pipezoo.serve.http import watched
from pipezoo.serve.http.watched import EventStream, JSONAnswer
from pipezoo_core.errors import PromptTooLongError
from pipezoo_core.request import GenerationStatus, TextGenerationOutput


async def call(response, goes_after=None):
    """Lets a client ask, which goes away after so many messages; returns what was sent."""
    sent, gone = [], asyncio.Event()

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if len(sent) == goes_after:
            gone.set()
            await asyncio.sleep(60)  # as a full buffer would

    if goes_after == 0:
        gone.set()
    await asyncio.wait_for(response({"type": "http"}, receive, send), 5)
    return sent


def body_of(sent):
    return b"".join(message.get("body", b"") for message in sent).decode()


async def events_of(*contents):
    for content in contents:
        if isinstance(content, Exception):
            raise content
        if isinstance(content, float):
            await asyncio.sleep(content)
        else:
            yield content


def test_events():
    sent = asyncio.run(call(EventStream(events_of({"a": 1}, {"b": "é"}))))
    assert sent[0]["status"] == 200
    assert body_of(sent) == 'data: {"a":1}\n\ndata: {"b":"é"}\n\ndata: [DONE]\n\n'
    assert sent[-1]["more_body"] is False


def test_an_error_before_the_first_event_has_a_status():
    sent = asyncio.run(call(EventStream(events_of(PromptTooLongError("too long")))))
    assert sent[0]["status"] == 400
    assert json.loads(body_of(sent))["error"]["code"] == "context_length_exceeded"


def test_an_error_behind_it_is_an_event():
    sent = asyncio.run(call(EventStream(events_of({"a": 1}, PromptTooLongError("too long")))))
    _, error, end, _ = body_of(sent).split("\n\n")
    assert json.loads(error[6:])["error"]["code"] == "context_length_exceeded"
    assert end == "data: [DONE]"


def test_typed_events_are_numbered_an_error_among_them(monkeypatch):
    monkeypatch.setattr(watched, "_SECONDS_OF_SILENCE", 0.02)  # comments have none
    before = [{"type": "response.created"}, 0.1, {"type": "response.a"}]
    sent = asyncio.run(call(EventStream(events_of(*before, PromptTooLongError("too long")), is_typed=True)))
    events = [block for block in body_of(sent).split("\n\n") if block.startswith("event: ")]
    names, contents = zip(*(event.removeprefix("event: ").split("\ndata: ") for event in events), strict=True)
    contents = [json.loads(content) for content in contents]
    assert [content["type"] for content in contents] == [*names] == ["response.created", "response.a", "error"]
    assert [content["sequence_number"] for content in contents] == [0, 1, 2]
    assert contents[-1]["code"] == "context_length_exceeded"


def test_what_nobody_foresaw_is_logged_and_not_told(caplog):
    sent = asyncio.run(call(EventStream(events_of({}, RuntimeError("secret of the machine")))))
    assert "secret" not in body_of(sent)
    assert "secret of the machine" in caplog.text


def test_silence_is_filled(monkeypatch):
    monkeypatch.setattr(watched, "_SECONDS_OF_SILENCE", 0.02)
    sent = asyncio.run(call(EventStream(events_of(0.1, {"a": 1}))))
    assert body_of(sent).startswith(": keep-alive\n\n: keep-alive\n\n")
    assert body_of(sent).endswith('data: {"a":1}\n\ndata: [DONE]\n\n')


@pytest.mark.parametrize("goes_after", [0, 1, 2, 3])
def test_a_client_that_goes_ends_the_work(monkeypatch, goes_after):
    monkeypatch.setattr(watched, "_SECONDS_OF_SILENCE", 0.02)
    ended = []

    async def endless():
        try:
            while True:
                yield {"a": 1}
                await asyncio.sleep(0.05)
        finally:
            ended.append(True)

    events = endless()
    sent = asyncio.run(call(EventStream(events), goes_after))
    assert len(sent) <= max(1, goes_after)
    assert ended == [True] or goes_after == 0
    with pytest.raises(StopAsyncIteration):
        asyncio.run(anext(events))


def test_an_answer_is_cancelled_when_nobody_waits():
    cancelled = []

    async def work():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def leave_soon():
        response = JSONAnswer(work)

        async def receive():
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}

        async def send(message):
            raise AssertionError

        await response({"type": "http"}, receive, send)

    asyncio.run(leave_soon())
    assert cancelled == [True]


def piece(text, index=0, status=GenerationStatus.ACTIVE):
    return TextGenerationOutput(request_id="r", text=text, tokens=[1], index=index, final_status=status)


def test_a_feed_joins_what_piles_up():
    async def run():
        feed = Feed(2)
        for _ in range(1000):
            feed.push(piece("a"))
        feed.push(piece("b", 1, GenerationStatus.MAXIMUM_LENGTH))
        assert sum(map(len, feed._pieces.values())) < 100
        first, second = await feed.take()
        assert (first.text, len(first.tokens), second.text) == ("a" * 1000, 1000, "b")
        assert not feed.is_over
        feed.push(piece("c", 0, GenerationStatus.MAXIMUM_LENGTH))
        feed.push(piece("", 0))
        assert feed.is_complete
        [last] = await feed.take()
        assert last.text == "c"
        assert feed.is_over

    asyncio.run(run())


def test_a_feed_that_fails_gives_what_was_there_first():
    async def run():
        feed = Feed(1)
        feed.push(piece("a"))
        feed.fail(PromptTooLongError("x"))
        assert [output.text for output in await feed.take()] == ["a"]
        assert not feed.is_over
        with pytest.raises(PromptTooLongError):
            await feed.take()
        assert feed.is_over

    asyncio.run(run())
