"""The engine's process as the server's process sees it: started, written to, read from, ended."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

from pipezoo.serve.engine.channel import HEADER, framed
from pipezoo.serve.engine.messages import Load, ToEngine, ToServer, decode_to_server, encode

__all__ = ["EngineChild"]

_SECONDS_TO_END = 5.0


class EngineChild:
    """A process that loads a model and serves it.

    Args:
        process: the process.
        reader: of what it sends.
        writer: to it.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def started(cls, load: Load) -> EngineChild:
        """Starts a process, which begins to load."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", "pipezoo.serve.engine.process", str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        reader, writer = await asyncio.open_connection(sock=ours)
        child = cls(process, reader, writer)
        child.send(load)
        return child

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Sends a message, and waits for nobody. To a process that is gone it sends nothing."""
        if not self._writer.is_closing():
            self._writer.write(framed(encode(message)))

    async def messages(self) -> AsyncIterator[ToServer]:
        """Yields what the process sends, until it is gone."""
        try:
            while True:
                (size,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
                yield decode_to_server(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError):
            return

    async def end(self) -> int:
        """Lets go of the process, which ends of that, waits for its end, and returns its exit status."""
        self._writer.close()
        try:
            return await asyncio.to_thread(self._process.wait, _SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)
