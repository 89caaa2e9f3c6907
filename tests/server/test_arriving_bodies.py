"""Bodies of requests that arrive at the same time: their number and their size have a bound."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from starlette.exceptions import HTTPException

from pipezoo.serve.http.body_limits import BodyLimits
from pipezoo.serve.http.failure import Failure

SIZE = 100  # most bytes of a body


class Client:
    """A request whose body comes in pieces, when it is told so."""

    def __init__(self, limits, headers):
        self._pieces, self.sent = asyncio.Queue(), []
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        self.task = asyncio.ensure_future(limits(scope, self._pieces.get, self._send))

    async def _send(self, message):
        self.sent.append(message)

    async def says(self, data=b"", *, is_last=False):
        self._pieces.put_nowait({"type": "http.request", "body": data, "more_body": not is_last})
        await asyncio.sleep(0.01)

    @property
    def status(self):
        return self.sent[0]["status"] if self.sent else None


def with_limits(scenario, **settings):
    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def run():
        limits = BodyLimits(app, SIZE, **settings)
        await scenario(limits)
        await asyncio.sleep(0.01)
        assert (limits._arriving.number, limits._arriving.size) == (0, 0)

    asyncio.run(run())


@pytest.mark.parametrize("headers", [[(b"content-length", b"50")], [(b"transfer-encoding", b"chunked")]])
def test_the_number_of_bodies_that_arrive_is_bounded(headers):
    async def scenario(limits):
        first, second = Client(limits, headers), Client(limits, headers)
        await first.says(b"x")
        third = Client(limits, headers)
        await third.task
        error = json.loads(third.sent[1]["body"])["error"]
        assert (third.status, error["code"]) == (429, "too_many_bodies")
        assert (b"retry-after", b"1") in third.sent[0]["headers"]
        without = Client(limits, [])
        await without.says(is_last=True)
        assert without.status == 200

        await first.says(b"y", is_last=True)
        fourth = Client(limits, headers)
        for client in (second, fourth):
            await client.says(b"z" * 50, is_last=True)
        assert [client.status for client in (first, second, fourth)] == [200, 200, 200]

    with_limits(scenario, max_arriving=2)


def test_the_size_of_all_that_arrive_is_bounded_and_who_goes_away_is_counted_no_more():
    async def scenario(limits):
        clients = [Client(limits, [(b"content-length", b"100")]) for _ in range(17)]
        for client in clients[:16]:
            await client.says(b"x" * SIZE)
        await clients[16].says(b"x")
        with pytest.raises(HTTPException) as refused:  # which the framework makes a response of
            await clients[16].task
        failure = Failure.of(refused.value)
        assert (failure.status, failure.headers) == (429, {"Retry-After": "1"})
        assert failure.body["error"]["code"] == "too_many_bodies"
        clients[0].task.cancel()
        other = Client(limits, [(b"content-length", b"100")])
        await other.says(b"x" * SIZE)
        for client in [*clients[1:16], other]:
            await client.says(is_last=True)
            assert client.status == 200

    with_limits(scenario)


def test_a_body_that_comes_a_byte_now_and_then_is_given_up_and_one_that_comes_fast_is_not(monkeypatch):
    now = [0.0]
    for module in ("arriving", "body_limits"):
        monkeypatch.setattr(f"pipezoo.serve.http.{module}.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("pipezoo.serve.http.body_limits._LEAST_RATE", 4)

    async def scenario(limits):
        headers = [(b"content-length", b"99")]
        slow, fast = Client(limits, headers), Client(limits, headers)
        for second in range(90):
            now[0] = float(second)
            await slow.says(b"x")
            if second < 11:
                await fast.says(b"x" * 9)
            if slow.task.done():
                break
        with pytest.raises(HTTPException, match="408"):
            await slow.task
        assert 80 <= second <= 82  # a minute, and a second for each four bytes
        await fast.says(is_last=True)
        assert fast.status == 200
        await Client(limits, headers).says(b"x", is_last=True)

    with_limits(scenario, max_arriving=2)
