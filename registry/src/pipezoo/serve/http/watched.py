"""Responses whose work ends when the client goes away."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipezoo.serve.http.failure import Failure

__all__ = ["EventStream", "JSONAnswer", "failure_response", "json_response"]

_SECONDS_OF_SILENCE = 10.0
_SILENCE = b": keep-alive\n\n"
_END = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that knows it passes events on at once
]


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Returns a response with a JSON body."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def failure_response(error: BaseException) -> Response:
    """Returns the response that tells a client of an error."""
    failure = Failure.of(error)
    return json_response(failure.body, failure.status, dict(failure.headers))


class _Watched(Response, ABC):
    """A response that works while the client is there."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends what comes of the work, and cancels the work when nobody is there any more."""
        work = asyncio.ensure_future(self._send(scope, receive, send))
        watch = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)
        if not work.cancelled():
            work.result()

    @abstractmethod
    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class JSONAnswer(_Watched):
    """One JSON object, when it is there.

    Args:
        content: does the work, whose result is sent.
    """

    def __init__(self, content: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self._content = content

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = json_response(await self._content())
        except Exception as error:  # becomes the response
            response = failure_response(error)
        await response(scope, receive, send)


class EventStream(_Watched):
    """Server-sent events, each a JSON object, and `[DONE]` at the end.

    What fails before the first event is a response like any other, with its status; later it is an event. Where nothing
    comes for 10 s a comment keeps the connection.

    Args:
        events: the objects; it is closed when the client goes away.
        is_typed: whether the events are named by their `type` and numbered from 0 on, an error among them, and there is
            no `[DONE]`.
    """

    def __init__(self, events: AsyncGenerator[Any], *, is_typed: bool = False) -> None:
        super().__init__()
        self._events = events
        self._is_typed = is_typed
        self._num_events = 0

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def begin() -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})

        async def send_body(data: bytes, *, more: bool = True) -> None:
            await begin()
            await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            async with aclosing(self._events), aclosing(_with_silences(self._events)) as events:
                async for event in events:
                    await send_body(_SILENCE if event is None else self._as_event(event))
        except Exception as error:  # becomes the response, or the last event of one that has begun
            if not has_begun:
                await failure_response(error)(scope, receive, send)
                return
            body = Failure.of(error).body
            await send_body(self._as_event({**body["error"], "type": "error"} if self._is_typed else body))
        await send_body(b"" if self._is_typed else _END, more=False)

    def _as_event(self, content: Any) -> bytes:
        name = b""
        if self._is_typed:
            name = f"event: {content['type']}\n".encode()
            content = {**content, "sequence_number": self._num_events}
        self._num_events += 1
        return name + b"data: " + msgspec.json.encode(content) + b"\n\n"


async def _with_silences(events: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
    """Yields the events, and None each time that none comes for a while."""
    while True:
        step = asyncio.ensure_future(anext(events, _END))
        try:
            while not (await asyncio.wait({step}, timeout=_SECONDS_OF_SILENCE))[0]:
                yield None
        finally:
            if not step.done():
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)
        if (event := step.result()) is _END:
            return
        yield event


async def _gone(receive: Receive) -> None:
    """Waits until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
