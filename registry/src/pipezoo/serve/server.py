"""The server's process: the application, its engine, and how both begin and end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import uvicorn

from pipezoo.serve.app import build_app
from pipezoo.serve.engine.client import EngineClient
from pipezoo.serve.engine.messages import Load
from pipezoo.serve.errors import ServerClosingError
from pipezoo.serve.model import ServedModel
from pipezoo.serve.service import Service
from pipezoo.serve.settings import ServeSettings

if TYPE_CHECKING:
    from pipezoo_core.tokenizer import TextTokenizer

__all__ = ["Server"]

_SECONDS_TO_KEEP_ALIVE = 120  # longer than clients keep one: they would ask just when it ends (nginx 60, Go 90)
_SECONDS_TO_SAY_GOODBYE = 5  # for responses to end, once their requests have


class _Uvicorn(uvicorn.Server):
    """Uvicorn without signal handlers: the server has its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


class Server:
    """Serves one model until it is told to end.

    Args:
        settings: how.
        load: what the engine loads.
        read_tokenizer: reads the model's tokenizer, and returns what makes it one for requests of at most so many
            tokens; both are called in threads, the first while the engine loads.
        names: of the model, where the settings have none.
        on_progress: called with how many numbers of the weights are loaded, of how many.
        on_ready: called with the address when requests are taken, and again after each restart of the engine.

    Attributes:
        service: what serves.
    """

    def __init__(
        self,
        settings: ServeSettings,
        load: Load,
        read_tokenizer: Callable[[], Callable[[int], TextTokenizer]],
        *,
        names: tuple[str, ...],
        on_progress: Callable[[int, int], None] = lambda *_: None,
        on_ready: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._read_tokenizer = read_tokenizer
        self._names = settings.served_model_names or names
        self._on_progress = on_progress
        self._on_ready = on_ready
        self._end = asyncio.Event()
        self._hurry = asyncio.Event()
        self.service = Service(settings, EngineClient(load, max_queue=settings.max_queue), model_name=self._names[0])

    def end(self) -> None:
        """Tells the server to end: it takes no further requests, and gives those that run their time.

        Being told again, it gives them none.
        """
        self.service.is_closing = True
        (self._hurry if self._end.is_set() else self._end).set()

    async def run(self, listener: socket.socket, *, handles_signals: bool = True) -> None:
        """Serves until `end`, or SIGTERM or SIGINT.

        Args:
            listener: bound to an address.
            handles_signals: whether SIGTERM and SIGINT end it; only in the main thread.

        Raises:
            EngineLostError: the engine died, and is not to be started again.
            Exception: what the load failed of.
        """
        host, port = listener.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        http = _Uvicorn(self._uvicorn_config())
        with self._signals() if handles_signals else nullcontext():
            serving = asyncio.ensure_future(http.serve([listener]))
            engine = asyncio.ensure_future(self._run_engine(address))
            await _first_of(serving, engine, self._end)
            self.service.is_closing = True
            http.should_exit = True
            if not engine.done():
                await _first_of(serving, engine, self._hurry, timeout=self._settings.shutdown_timeout)
                self.service.engine.fail_all(ServerClosingError("the server is about to end", cure="Ask another one."))
            await self.service.engine.close()  # so that no request begins that is made ready only now
            await serving
            if self.service.model is not None:
                self.service.model.close()
            await asyncio.to_thread(self.service.close)
            try:
                await engine
            finally:  # which says until its end what happens to pages
                if self.service.kv_events is not None:
                    await self.service.kv_events.close()

    async def _run_engine(self, address: str) -> None:
        tokenizer = asyncio.ensure_future(asyncio.to_thread(self._read_tokenizer))

        async def on_ready() -> None:
            facts = self.service.engine.facts
            assert facts is not None, "the engine is ready"
            if self.service.model is None:
                model_tokenizer = await asyncio.to_thread(await tokenizer, facts.max_length)
                self.service.model = ServedModel(self._names, model_tokenizer)
            self._on_ready(address)

        def restarts() -> bool:
            return self._settings.on_engine_death == "restart" and not self.service.is_closing

        try:
            await self.service.engine.run(restarts=restarts, on_ready=on_ready, on_progress=self._on_progress)
        finally:
            await asyncio.wait({tokenizer})

    def _uvicorn_config(self) -> uvicorn.Config:
        return uvicorn.Config(
            build_app(self.service),
            http="h11",  # which bounds the headers of a request
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            ws="none",
            timeout_keep_alive=_SECONDS_TO_KEEP_ALIVE,
            timeout_graceful_shutdown=int(self._settings.shutdown_timeout) + _SECONDS_TO_SAY_GOODBYE,
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.end)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


async def _first_of(*waiting: asyncio.Task[None] | asyncio.Event, timeout: float | None = None) -> None:
    """Waits until one of several tasks has ended, or one of several events is there."""
    events = [asyncio.ensure_future(each.wait()) for each in waiting if isinstance(each, asyncio.Event)]
    tasks = [each for each in waiting if isinstance(each, asyncio.Task)]
    await asyncio.wait({*tasks, *events}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for event in events:
        event.cancel()
