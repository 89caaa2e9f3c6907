"""The engine as the server's process knows it, with a stand-in for the other process."""

import asyncio
import contextlib

import msgspec
import pytest

from pipezoo.serve.engine.asked import Asked
from pipezoo.serve.engine.client import EngineClient, EngineState
from pipezoo.serve.engine.messages import AddAdapter, Counts, Done, Load, Ready, RemoveAdapter, Steps
from pipezoo.serve.errors import EngineLostError, EngineUnavailableError, QueueFullError, ServerClosingError
from pipezoo.serve.service import Service
from pipezoo.serve.settings import ServeSettings
from pipezoo_core.errors import InvalidRequestError, ModelNotFoundError
from pipezoo_core.request import TextGenerationOutput
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
    client.facts = Ready(max_length=16, max_batch_size=2, page_size=8, max_num_loras=0, adapters=[], counts=COUNTS)
    return client


def asked(**settings):
    params = SamplingParams(**settings)
    return Asked(prompts=[[1]], params=params, lora=None, arrival_time=0.0, response_id="cmpl-1")


def answers(client, **settings):
    return client.answers([1], asked(**settings))


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

            def on_end(self, *_):
                pass

        if part == "observer":
            client.observers.append(Observer())
        with pytest.raises(OverflowError):
            await anext(answers(client, n=2))
        assert not client._feeds

    asyncio.run(run())


def test_how_many_may_wait():
    async def run():
        client = ready_client(Child())
        with client.places(4):
            assert client.num_answers == 4
        with pytest.raises(InvalidRequestError, match="at most 4"), client.places(5):
            pass
        with client.places(3):
            with client.places(1):
                pass
            with pytest.raises(QueueFullError, match="at most 4"), client.places(2):
                pass
        assert client.num_answers == 0
        client.state = EngineState.DEAD
        with pytest.raises(EngineUnavailableError), client.places(1):
            pass

    asyncio.run(run())


class Endings:
    """Notes how requests end."""

    def __init__(self):
        self.errors = []

    def on_begin(self, *_, **__):
        pass

    def on_output(self, _):
        pass

    def on_end(self, _, error):
        self.errors.append(error)


@pytest.mark.parametrize("is_read", [True, False])
def test_observers_learn_of_what_a_request_failed_and_of_clients_that_leave(is_read):
    """Also where its reader goes away before it has learnt of that."""

    async def run():
        client, endings = ready_client(Child()), Endings()
        client.observers.append(endings)
        lost, of_engine = EngineLostError("the engine's process ended"), ValueError("of the engine")
        for failure in (None, lost, of_engine):
            stream = answers(client, n=2)
            task = await until_it_waits(stream)
            if failure is lost:
                client.fail_all(lost)
            elif failure is of_engine:
                client._take(Steps([TextGenerationOutput.failed(client._child.sent[-1].request_id, failure)], COUNTS))
            if failure is lost and is_read:
                with pytest.raises(EngineLostError):
                    await task
            elif failure is of_engine and is_read:
                assert (await task)[0].error is of_engine
            else:
                await given_up(task)
            await stream.aclose()
        assert endings.errors == [None, lost, of_engine]

    asyncio.run(run())


@pytest.mark.parametrize("is_failure", [True, False])
def test_prompts_that_end_with_one_that_failed_have_failed_and_those_whose_client_left_have_not(is_failure):
    async def run():
        client, endings = ready_client(Child()), Endings()
        service = Service(ServeSettings(), client)
        client.observers[:] = [endings]
        params = SamplingParams(n=2, temperature=1)
        three = Asked(prompts=[[1], [2], [3]], params=params, lora=None, arrival_time=0.0, response_id="cmpl-1")
        outputs = service.outputs(three)
        task = await until_it_waits(outputs)
        while len(client._child.sent) < 3:
            await asyncio.sleep(0)
        failure = ValueError("of the second prompt")
        if is_failure:
            client._take(Steps([TextGenerationOutput.failed(client._child.sent[1].request_id, failure)], COUNTS))
            with pytest.raises(ValueError, match="of the second prompt"):
                await task
        else:
            await given_up(task)
            await outputs.aclose()
        assert endings.errors == [failure if is_failure else None] * 3

    asyncio.run(run())


class Process:
    """An engine's process that is there until it is ended; it dies by itself where it `is_mortal`."""

    def __init__(self, *, is_mortal=False):
        self.is_over, self.pid = asyncio.Event(), 0
        if is_mortal:
            self.is_over.set()

    async def messages(self):
        yield Ready(max_length=16, max_batch_size=2, page_size=8, max_num_loras=0, adapters=[], counts=COUNTS)
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


def test_when_an_engine_is_lost_the_pages_of_all_its_replicas_are_said_to_be_gone(monkeypatch):
    class TwoReplicas(Process):
        async def messages(self):
            async for ready in super().messages():
                yield msgspec.structs.replace(ready, num_replicas=2)

    async def run(**load):
        async def started(_):
            return TwoReplicas(is_mortal=True)

        monkeypatch.setattr("pipezoo.serve.engine.client.EngineChild.started", started)
        told, client = [], EngineClient(Load("none", {}, **load), max_queue=2)
        client.on_kv_events = told.extend
        with pytest.raises(EngineLostError):
            await running(client, restarts=lambda: False)
        return [msgspec.msgpack.decode(batch)[1:] for batch in told]

    assert asyncio.run(run(reports_pages=True)) == [[[{"type": "AllBlocksCleared"}], rank] for rank in (0, 1)]
    assert asyncio.run(run()) == []


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
            await anext(answers(client))
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


class ProcessWithAdapters(Process):
    """Knows adapters: those that each process loads by itself, and what it is told; it dies when it is killed."""

    def __init__(self, missing=()):
        super().__init__()
        self.adapters, self.missing, self.replies = {"own": "there"}, missing, asyncio.Queue()

    async def messages(self):
        yield Ready(16, 2, 8, 1, [*self.adapters], COUNTS)
        yield Steps([], COUNTS)
        while (reply := await self.replies.get()) is not None:
            yield reply

    def send(self, message):
        error = None
        if isinstance(message, RemoveAdapter):
            del self.adapters[message.name]
        elif isinstance(message, AddAdapter):
            name, _, path = message.path.partition("=")
            if path in self.missing:
                error = ModelNotFoundError("there is no such folder", found=path)
            else:
                self.adapters[name] = path
        self.replies.put_nowait(Steps([], COUNTS))
        self.replies.put_nowait(Done(message.number, [*self.adapters], COUNTS, error))

    def kill(self):
        self.replies.put_nowait(None)


def test_another_process_has_the_adapters_of_the_last_one(monkeypatch, caplog):
    """Those that clients have loaded, at their places; none that they have unloaded, nor one whose files are gone."""

    async def run():
        processes = [ProcessWithAdapters(), ProcessWithAdapters(), ProcessWithAdapters(missing=["b"])]
        started = iter(processes)

        async def start(_):
            return next(started)

        async def until_ready(process):
            while client._child is not process or client.state is not EngineState.READY:
                await asyncio.sleep(0)

        monkeypatch.setattr("pipezoo.serve.engine.client.EngineChild.started", start)
        client = EngineClient(Load("none", {}), max_queue=2)
        run = running(client)
        first, second, third = processes
        await until_ready(first)
        await client.add_adapter("a", "a")
        await client.add_adapter("b", "b")
        await client.remove_adapter("a")
        await client.remove_adapter("own")
        await client.add_adapter("own", "elsewhere")
        first.kill()
        await until_ready(second)
        assert second.adapters == first.adapters == {"b": "b", "own": "elsewhere"}
        assert sorted(client.adapters) == ["b", "own"]
        second.kill()
        await until_ready(third)
        assert third.adapters == {"own": "elsewhere"}
        assert client.adapters == ["own"]
        await client.close()
        third.kill()
        await asyncio.wait_for(run, 5)

    asyncio.run(run())
    assert "adapter 'b' is gone" in caplog.text
