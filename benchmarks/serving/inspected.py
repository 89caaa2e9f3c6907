"""A server in a process of its own that opens its books: `with inspected(model) as server: server.books()`.

The process is this file, too. It writes a line of JSON when it takes requests, and one for each line that it reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Books", "Inspected", "inspected", "resident"]


@dataclass(frozen=True, slots=True)
class Books:
    """What a server says of itself.

    Attributes:
        num_pages: of the KV cache.
        num_free_pages: those that no request refers to.
        num_running: requests of the engine that have pages.
        num_waiting: those that have none.
        num_answers: that the server's process waits for.
        num_begun: answers that the engine was ever asked for.
        integrity: what is wrong in the KV cache's books; None where nothing is.
        num_deaths: how often the engine has died.
    """

    num_pages: int
    num_free_pages: int
    num_running: int
    num_waiting: int
    num_answers: int
    num_begun: int
    integrity: str | None
    num_deaths: int

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for anything."""
        return self.num_answers == self.num_running == self.num_waiting == 0


@dataclass(frozen=True, slots=True)
class Inspected:
    """A server that runs.

    Attributes:
        port: at 127.0.0.1.
        pids: of the server's process and of the engine's.
    """

    port: int
    pids: tuple[int, int]
    _process: subprocess.Popen[str]

    def books(self) -> Books:
        """Has the server look at its books."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Books(**_said(self._process))


def resident(pid: int) -> float:
    """Returns how much memory a process has that no file could give back, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


@contextlib.contextmanager
def inspected(model: str | Path, load: dict[str, Any] | None = None, **settings: Any) -> Iterator[Inspected]:
    """Starts a server, and ends it.

    Args:
        model: as for `registry.load`.
        load: likewise.
        **settings: of `ServeSettings`.
    """
    asked = json.dumps([str(model), load or {}, {**settings, "port": 0}])
    command = [sys.executable, __file__, asked]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        begun = _said(process)
        yield Inspected(begun["port"], (process.pid, begun["engine"]), process)
    finally:
        assert process.stdin is not None
        process.stdin.close()  # which ends it
        status = process.wait(120)
        assert process.stdout is not None
        process.stdout.close()
    if status:
        raise RuntimeError(f"the server ended with exit status {status}")


def _said(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the server is gone")
    return json.loads(line)


class _Begun:
    """Counts the answers that an engine is asked for."""

    def __init__(self) -> None:
        self.count = 0

    def on_begin(self, _: str, asked: Any, **__: Any) -> None:
        self.count += asked.params.n

    def on_output(self, _: Any) -> None: ...

    def on_end(self, *_: Any) -> None: ...


def _say(content: object) -> None:
    print(json.dumps(content), flush=True)


async def _main(model: str, load: dict[str, Any], settings: dict[str, Any]) -> None:
    from pipezoo.serve.run import bound, new_server
    from pipezoo.serve.settings import ServeSettings

    serve_settings, begun, loop = ServeSettings(**settings), _Begun(), asyncio.get_running_loop()
    with bound(serve_settings) as listener:
        port = listener.getsockname()[1]

        def on_ready(_: str) -> None:
            if server.service.engine.num_deaths == 0:
                _say({"port": port, "engine": server.service.engine.pid})

        async def books() -> Books:
            engine, integrity = server.service.engine, None
            try:
                await engine.inspect()
            except Exception as error:  # it is what is asked for
                integrity = str(error)
            counts = engine.counts
            assert counts is not None
            return Books(
                counts.num_pages,
                counts.num_free_pages,
                counts.num_running,
                counts.num_waiting,
                engine.num_answers,
                begun.count,
                integrity,
                engine.num_deaths,
            )

        def read() -> None:
            for _ in sys.stdin:
                _say(asdict(asyncio.run_coroutine_threadsafe(books(), loop).result()))
            loop.call_soon_threadsafe(server.end)

        server = new_server(model, load, serve_settings, on_ready=on_ready)
        server.service.engine.observers.append(begun)
        threading.Thread(target=read, daemon=True).start()
        await server.run(listener)


if __name__ == "__main__":
    asyncio.run(_main(*json.loads(sys.argv[1])))
