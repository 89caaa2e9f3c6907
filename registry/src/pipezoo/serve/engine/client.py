"""The engine as the server's process knows it: it answers requests, may die, and comes back where it is to."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from pipezoo.serve.engine.adapter_record import AdapterRecord
from pipezoo.serve.engine.asked import Asked
from pipezoo.serve.engine.child import EngineChild
from pipezoo.serve.engine.feed import Feed
from pipezoo.serve.engine.kv_events import all_cleared
from pipezoo.serve.engine.messages import (
    AddAdapter,
    Cancel,
    Counts,
    Done,
    Generate,
    Inspect,
    Load,
    LoadFailed,
    Loading,
    Ready,
    RemoveAdapter,
    Steps,
    ToServer,
)
from pipezoo.serve.engine.observer import RequestObserver
from pipezoo.serve.engine.room import Room
from pipezoo.serve.engine.state import EngineState
from pipezoo.serve.errors import EngineLostError, EngineUnavailableError, ServerClosingError
from pipezoo_core.request import RequestID, TextGenerationOutput, new_request_id
from pipezoo_core.sampling_params import SamplingParams

__all__ = ["EngineClient", "EngineState"]

_LOGGER = logging.getLogger("pipezoo")


class EngineClient:
    """Sends requests to the engine's process and hands out what it produces. Belongs to one event loop.

    Args:
        load: what the process loads.
        max_queue: most answers that may wait beside those of a full batch.

    Attributes:
        state: what the engine does now.
        facts: what it has loaded; None before the first time.
        counts: what it has counted; None before the first time.
        adapters: the names of the LoRA adapters that are loaded.
        num_deaths: how often its process has ended unasked.
        observers: those who are told of all requests.
        on_kv_events: called with what happens to pages, where the load asks for that: batches as MessagePack. An engine
            that is lost has none any more.
    """

    def __init__(self, load: Load, *, max_queue: int) -> None:
        self._load = load
        self._room = Room(max_queue)
        self._adapter_record = AdapterRecord()
        self._child: EngineChild | None = None
        self._feeds: dict[RequestID, Feed] = {}
        self._asked: dict[int, asyncio.Future[Done]] = {}
        self._numbers = itertools.count()
        self._is_closing = False
        self.state = EngineState.LOADING
        self.facts: Ready | None = None
        self.counts: Counts | None = None
        self.adapters: list[str] = []
        self.num_deaths = 0
        self.observers: list[RequestObserver] = []
        self.on_kv_events: Callable[[Sequence[bytes]], None] = lambda _: None

    @property
    def pid(self) -> int | None:
        """The number of the engine's process, where there is one."""
        return None if self._child is None else self._child.pid

    @property
    def num_answers(self) -> int:
        """Answers that somebody waits for, or will when their prompts are made."""
        return self._room.num_taken

    async def run(
        self,
        *,
        restarts: Callable[[], bool],
        on_ready: Callable[[], Awaitable[None]],
        on_progress: Callable[[int, int], None],
    ) -> None:
        """Starts the engine and serves, until `close`, or for as long as there is one.

        Args:
            restarts: asked whether another process takes the place of one that has died.
            on_ready: called when a model is loaded, before requests are taken, the first time and each time after.
            on_progress: called with how many numbers of the weights are loaded, of how many.

        Raises:
            EngineLostError: the process died, and is not to be started again, or died while it loaded.
            Exception: what the load failed of.
        """
        try:
            while not self._is_closing:
                await self._run_once(on_ready, on_progress)
                if not self._is_closing and not restarts():
                    raise _lost()
        finally:
            self.state = EngineState.DEAD
            self.fail_all(_lost())

    async def _run_once(self, on_ready: Callable[[], Awaitable[None]], on_progress: Callable[[int, int], None]) -> None:
        self.state = EngineState.LOADING
        child = self._child = await EngineChild.started(self._load)
        if self._is_closing:  # meanwhile: the process ends before it says anything
            await child.end()
        failed: LoadFailed | None = None
        try:
            messages = child.messages()
            async for message in messages:
                match message:
                    case Loading(num_done, num_all):
                        on_progress(num_done, num_all)
                    case Ready():
                        self.facts, self.counts, self.adapters = message, message.counts, message.adapters
                        if await self._restore_adapters(child, messages):
                            await on_ready()  # what the engine says meanwhile waits
                            self.state = EngineState.READY
                    case LoadFailed():
                        failed = message
                    case _:
                        self._take(message)
        finally:
            was_ready, self.state, self._child = self.state is EngineState.READY, EngineState.DEAD, None
            self.fail_all(_lost())  # at once: what is known of the process's end comes later
            if self.facts is not None and self._load.reports_pages:
                self.on_kv_events([all_cleared(rank) for rank in range(self.facts.num_replicas)])
            status = await child.end()
        if failed is not None:
            for note in failed.notes:
                failed.error.add_note(note)
            raise failed.error
        if self._is_closing:
            return
        self.num_deaths += 1
        _LOGGER.error("the engine's process ended unasked, with exit status %d", status)
        if not was_ready:
            raise EngineLostError("the engine's process ended while it loaded", found=f"exit status {status}")

    async def _restore_adapters(self, child: EngineChild, messages: AsyncIterator[ToServer]) -> bool:
        """Gives a new process the adapters of the last one; returns whether it is still there."""
        for name, path in self._adapter_record.missing_from(self.adapters):
            number = next(self._numbers)
            child.send(RemoveAdapter(number, name) if path is None else AddAdapter(number, f"{name}={path}"))
            async for message in messages:
                self._take(message)
                if isinstance(message, Done):
                    if message.error is not None:
                        self._adapter_record.remove(name)
                        _LOGGER.warning("adapter %r is gone with the engine that had it (%s)", name, message.error)
                    break
            else:
                return False
        return True

    def _take(self, message: ToServer) -> None:
        match message:
            case Steps(outputs, counts, kv_events):
                self.counts = counts
                if kv_events:
                    self.on_kv_events(kv_events)
                for output in outputs:
                    for observer in self.observers:
                        observer.on_output(output)
                    if (feed := self._feeds.get(output.request_id)) is not None:
                        feed.push(output)
            case Done():
                self.adapters, self.counts = message.adapters, message.counts
                if (future := self._asked.pop(message.number, None)) is not None and not future.done():
                    future.set_result(message)

    def check_available(self) -> None:
        """Checks that requests are taken.

        Raises:
            ServerClosingError: none will be any more.
            EngineUnavailableError: none can be now.
        """
        if self._is_closing:
            raise ServerClosingError("the server is about to end", cure="Ask another one.")
        if self.state is not EngineState.READY:
            raise EngineUnavailableError(
                "the engine takes no requests", found=self.state.value, cure="Ask /ready, and try again when it is."
            )

    @contextmanager
    def places(self, num_answers: int) -> Iterator[None]:
        """Has places for so many answers while the context lasts: from when a request is taken until it is over.

        Raises:
            ServerClosingError: no request is taken any more.
            EngineUnavailableError: none can be taken now.
            InvalidRequestError: they are more than may ever wait.
            QueueFullError: too many wait already.
        """
        self.check_available()
        assert self.facts is not None, "the engine is ready"
        with self._room.places(num_answers, max_batch_size=self.facts.max_batch_size):
            yield

    async def answers(
        self, prompt: Sequence[int], asked: Asked, *, is_whole: bool = False
    ) -> AsyncGenerator[list[TextGenerationOutput]]:
        """Answers a prompt and yields what is new, as fast as it is taken. One that is closed early is cancelled.

        Args:
            prompt: its tokens.
            asked: how to answer it.
            is_whole: see `Feed`.

        Yields:
            One output for each answer that went on; one that failed has the error.

        Raises:
            ServerClosingError: no request is taken any more.
            EngineUnavailableError: none can be taken now.
            EngineLostError: the engine's process ended meanwhile.
        """
        self.check_available()
        assert self._child is not None, "the engine is ready"
        request_id, settings = new_request_id(), asked.params.given(SamplingParams)
        self._child.send(Generate(request_id, [*prompt], settings, asked.lora, asked.arrival_time))
        feed = self._feeds[request_id] = Feed(asked.params.n, is_whole=is_whole)  # not before: sending may fail
        try:
            for observer in self.observers:
                observer.on_begin(request_id, asked, num_prompt_tokens=len(prompt))
            while not feed.is_over:
                yield await feed.take()
        finally:
            self._feeds.pop(request_id, None)
            for observer in self.observers:
                observer.on_end(request_id, feed.error or asked.error)
            if not feed.is_complete and self._child is not None:
                self._child.send(Cancel(request_id))

    async def add_adapter(self, name: str, path: str) -> None:
        """Loads a LoRA adapter. Raises what `TextGenerationPipeline.load_adapter` does."""
        await self._ask(lambda number: AddAdapter(number, f"{name}={path}"))
        self._adapter_record.add(name, path)

    async def remove_adapter(self, name: str) -> None:
        """Forgets a LoRA adapter. Raises what `TextGenerationPipeline.unload_adapter` does."""
        await self._ask(lambda number: RemoveAdapter(number, name))
        self._adapter_record.remove(name)

    async def inspect(self) -> Counts:
        """Checks the books of the KV cache, and returns what the engine counts after that.

        Raises:
            CacheIntegrityError: they do not balance.
        """
        await self._ask(Inspect)
        assert self.counts is not None, "the engine is ready"
        return self.counts

    async def _ask(self, message: Callable[[int], AddAdapter | RemoveAdapter | Inspect]) -> None:
        self.check_available()
        assert self._child is not None, "the engine is ready"
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        self._child.send(message(number))
        if (error := (await future).error) is not None:
            raise error

    def fail_all(self, error: Exception) -> None:
        """Ends all that somebody waits for with an error, and has the engine forget it."""
        for request_id, feed in self._feeds.items():
            if not feed.is_complete:
                feed.fail(error)
                if self._child is not None:
                    self._child.send(Cancel(request_id))
        for future in self._asked.values():
            if not future.done():
                future.set_exception(error)
        self._asked.clear()

    async def close(self) -> None:
        """Ends the engine's process and takes no further requests; `run` comes to its end."""
        self._is_closing = True
        if self._child is not None:
            await self._child.end()


def _lost() -> EngineLostError:
    return EngineLostError("the engine's process ended", cure="Send the request again.")
