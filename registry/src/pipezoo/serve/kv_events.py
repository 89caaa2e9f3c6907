"""Publishes KV events over ZeroMQ, as vLLM does, for routers of requests. Needs `pip install 'pipezoo[kv-events]'`.

A message has three parts: the topic, the number of the batch in 8 bytes, big end first, and the batch as MessagePack.
Who asks the replay address for a number gets that batch and all later ones that are still there, each as its number and
the batch, and then the number -1. One is served at a time; one that stops reading is given up.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipezoo_core.errors import InvalidSettingError, MissingDependencyError

if TYPE_CHECKING:
    from zmq import Context, Socket
    from zmq.asyncio import Socket as AsyncSocket

__all__ = ["KVEventPublisher"]

_MAX_WAITING = 256  # batches for a slow reader; it misses those behind them
_MAX_KEPT = 10_000
_MAX_KEPT_SIZE = 1 << 26  # bytes
_SECONDS_OF_SILENCE = 5.0  # of one that asked for past batches, and takes none
_SECONDS_BETWEEN_TRIES = 0.01
_END = (-1).to_bytes(8, "big", signed=True)


class KVEventPublisher:
    """Publishes batches. Belongs to one event loop.

    Args:
        endpoint: where, `tcp://HOST:PORT` or `ipc://PATH`. At `*`, `localhost`, a number of this machine's or a path it
            listens, and to any other host it connects.
        topic: what the batches are published under.
        replay_endpoint: where it listens for those that ask for past batches; None gives none out.

    Raises:
        MissingDependencyError: pyzmq is not installed.
        InvalidSettingError: an address cannot be had.
    """

    def __init__(self, endpoint: str, *, topic: str = "", replay_endpoint: str | None = None) -> None:
        context = _context()
        self._topic = topic.encode()
        self._number = 0
        self._kept: deque[bytes] = deque()  # those before `_number`
        self._kept_size = 0
        self._is_closed = False
        self._replaying: asyncio.Task[None] | None = None
        self._replay: Socket[bytes] | None = None
        try:
            self._events = _opened(context, "PUB", endpoint, listens=_is_here(endpoint))
            if replay_endpoint is not None:
                self._replay = _opened(context, "ROUTER", replay_endpoint, listens=True)
        except InvalidSettingError:
            context.destroy(linger=0)
            raise
        self._context = context

    def publish(self, batches: Sequence[bytes]) -> None:
        """Publishes batches, as MessagePack, and waits for nobody. Once it is closed, it publishes nothing."""
        import zmq

        if self._is_closed:
            return
        if self._replay is not None and self._replaying is None:
            self._replaying = asyncio.get_running_loop().create_task(self._serve_replay(self._replay))
        for data in batches:
            parts = (self._topic, self._number.to_bytes(8, "big"), data)
            self._events.send_multipart(parts, zmq.NOBLOCK)  # what is too much for a reader is dropped
            self._number += 1
            if self._replay is not None:
                self._keep(data)

    def _keep(self, data: bytes) -> None:
        self._kept.append(data)
        self._kept_size += len(data)
        while len(self._kept) > _MAX_KEPT or self._kept_size > _MAX_KEPT_SIZE:
            self._kept_size -= len(self._kept.popleft())

    async def _serve_replay(self, replay: Socket[bytes]) -> None:
        from zmq.asyncio import Socket

        with Socket.from_socket(replay) as waited_for:
            while True:
                frames = await waited_for.recv_multipart()
                if len(frames) != 3 or frames[1] or len(frames[2]) != len(_END):
                    continue
                await self._give_past(waited_for, frames[0], int.from_bytes(frames[2], "big"))

    async def _give_past(self, replay: AsyncSocket, who: bytes, number: int) -> None:
        """Gives out the batches from a number on, and the end; others go on between two of them."""
        while (number := max(number, self._number - len(self._kept))) < self._number:
            data = self._kept[number - self._number]
            if not await _sent(replay, [who, b"", number.to_bytes(8, "big"), data]):
                return
            number += 1
        await _sent(replay, [who, b"", _END, b""])

    async def close(self) -> None:
        """Closes the addresses; what no reader has taken is lost."""
        self._is_closed = True
        if self._replaying is not None:
            self._replaying.cancel()
            await asyncio.wait({self._replaying})
        self._context.destroy(linger=0)


async def _sent(replay: AsyncSocket, parts: Sequence[bytes]) -> bool:
    """Sends to one that asked, as soon as it takes more; returns whether it did."""
    import zmq

    for _ in range(int(_SECONDS_OF_SILENCE / _SECONDS_BETWEEN_TRIES)):
        try:
            await replay.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            await asyncio.sleep(_SECONDS_BETWEEN_TRIES)
        except zmq.ZMQError:  # it is gone
            return False
        else:
            await asyncio.sleep(0)
            return True
    return False


def _context() -> Context[Socket[bytes]]:
    try:
        from zmq import Context
    except ImportError as error:
        raise MissingDependencyError(
            "KV events need a package that is not installed",
            found=error.name,
            cure="Try, in a clone: pip install './registry[kv-events]'",
        ) from error
    return Context()


def _opened(context: Context[Socket[bytes]], kind: str, endpoint: str, *, listens: bool) -> Socket[bytes]:
    import zmq

    opened = context.socket(getattr(zmq, kind))
    opened.set_hwm(_MAX_WAITING)
    if kind == "ROUTER":  # else what somebody does not take would be dropped
        opened.setsockopt(zmq.ROUTER_MANDATORY, 1)
    opened.setsockopt(zmq.IPV6, int("[" in endpoint))
    if listens:  # where names are those of network cards
        endpoint = endpoint.replace("//localhost:", "//127.0.0.1:")
    try:
        (opened.bind if listens else opened.connect)(endpoint)
    except zmq.ZMQError as error:
        raise InvalidSettingError(
            "the address for KV events cannot be had",
            found=f"{endpoint}: {error.strerror}",
            allowed="such as tcp://127.0.0.1:5557, tcp://*:5557 or ipc:///run/events, which nobody else has",
        ) from error
    return opened


def _is_here(endpoint: str) -> bool:
    """Whether an address is this machine's, where one can tell by its text."""
    kind, _, rest = endpoint.partition("://")
    host = rest.rpartition(":")[0].strip("[]")
    if kind != "tcp" or host in ("*", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
