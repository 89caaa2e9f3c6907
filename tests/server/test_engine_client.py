"""The engine as the server's process knows it, with a stand-in for the other process."""

import asyncio
import contextlib

import pytest

from pipezoo.serve.engine.client import EngineClient, EngineState
from pipezoo.serve.engine.messages import Counts, Load, Ready
from pipezoo.serve.errors import EngineLostError, QueueFullError, ServerClosingError
from pipezoo_core.errors import InvalidRequestError
from pipezoo_core.sampling_params import SamplingParams

COUNTS = Counts(*[0] * 7)


class Child:
    """Keeps what is sent; `fails` is raised in its place."""

    def __init__(self, fails=None):
        self.sent, self.fails = [], fails

    def send(self, message):
        if self.fails is not None:
            raise self.fails
        self.sent.append(message)


def ready_client(child, *, max_queue=2):
    client = EngineClient(Load("none", {}), max_queue=max_queue)
    client._child, client.state = child, EngineState.READY
    client.facts = Ready(max_length=16, max_batch_size=2, page_size=8, adapters=[], counts=COUNTS)
    return client


def answers(client, request_id, **settings):
    return client.answers(request_id, [1], SamplingParams(**settings), lora=None, arrival_time=0.0)


async def until_it_waits(stream):
    task = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    return task


async def given_up(task):
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("part", ["child", "observer"])
def test_what_cannot_begin_leaves_nothing_behind(part):
    async def run():
        client = ready_client(Child(OverflowError("too large") if part == "child" else None))

        class Observer:
            def on_begin(self, *_, **__):
                raise OverflowError("too large")

            def on_end(self, _):
                pass

        if part == "observer":
            client.observers.append(Observer())
        with pytest.raises(OverflowError):
            await anext(answers(client, "a", n=2))
        assert client.num_answers == 0
        assert not client._feeds

    asyncio.run(run())


def test_how_many_may_wait():
    async def run():
        client = ready_client(Child())
        client.check_room(4)
        with pytest.raises(InvalidRequestError, match="at most 4"):
            client.check_room(5)
        task = await until_it_waits(answers(client, "a", n=3))
        client.check_room(1)
        with pytest.raises(QueueFullError, match="at most 4"):
            client.check_room(2)
        await given_up(task)
        client.check_room(4)

    asyncio.run(run())


class Process:
    """An engine's process that is there until it is ended; it dies by itself where it `is_mortal`."""

    def __init__(self, *, is_mortal=False):
        self.is_over, self.pid = asyncio.Event(), 0
        if is_mortal:
            self.is_over.set()

    async def messages(self):
        yield Ready(max_length=16, max_batch_size=2, page_size=8, adapters=[], counts=COUNTS)
        await self.is_over.wait()

    def send(self, message):
        pass

    async def end(self):
        self.is_over.set()
        return 0


async def nothing():
    pass


def running(client, *, restarts=lambda: True):
    return asyncio.ensure_future(client.run(restarts=restarts, on_ready=nothing, on_progress=lambda *_: None))


def test_a_client_that_is_closed_takes_no_request(monkeypatch):
    async def run():
        async def started(_):
            return Process()

        monkeypatch.setattr("pipezoo.serve.engine.client.EngineChild.started", started)
        client = EngineClient(Load("none", {}), max_queue=2)
        run = running(client)
        while client.state is not EngineState.READY:
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(client.close())
        await asyncio.sleep(0)
        with pytest.raises(ServerClosingError):
            await anext(answers(client, "a"))
        await asyncio.wait_for(asyncio.gather(run, closing), 5)
        with pytest.raises(ServerClosingError):
            client.check_available()

    asyncio.run(run())


def test_a_process_that_starts_while_the_client_is_closed_is_ended(monkeypatch):
    async def run():
        process, is_begun, goes_on = Process(), asyncio.Event(), asyncio.Event()

        async def started(_):
            is_begun.set()
            await goes_on.wait()
            return process

        monkeypatch.setattr("pipezoo.serve.engine.client.EngineChild.started", started)
        client = EngineClient(Load("none", {}), max_queue=2)
        run = running(client)
        await is_begun.wait()
        await client.close()
        goes_on.set()
        await asyncio.wait_for(run, 5)
        assert process.is_over.is_set()

    asyncio.run(run())


def test_whether_another_process_takes_its_place_is_asked_when_one_has_died(monkeypatch):
    async def run():
        asked = iter([True, True, False])
        processes = []

        async def started(_):
            processes.append(Process(is_mortal=True))
            return processes[-1]

        monkeypatch.setattr("pipezoo.serve.engine.client.EngineChild.started", started)
        with pytest.raises(EngineLostError):
            await running(EngineClient(Load("none", {}), max_queue=2), restarts=lambda: next(asked))
        assert len(processes) == 3

    asyncio.run(run())
