"""What the endpoints share: the engine, the model, and how prompts become outputs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated

from fastapi import Depends, Request

from pipezoo.serve.engine.asked import Asked
from pipezoo.serve.engine.client import EngineClient, EngineState
from pipezoo.serve.errors import ServerClosingError
from pipezoo.serve.kv_events import KVEventPublisher
from pipezoo.serve.metrics.metrics import Metrics
from pipezoo.serve.model import ServedModel
from pipezoo.serve.settings import ServeSettings
from pipezoo.serve.traces import Traces, exporting_provider
from pipezoo_core.request import TextGenerationOutput

__all__ = ["Served", "Service"]


class Service:
    """Serves requests with one engine.

    Args:
        settings: how.
        engine: answers.
        model_name: the label of the model in metrics.

    Raises:
        MissingDependencyError: traces or KV events are wanted, and the packages for them are not installed.
        InvalidSettingError: an address for KV events cannot be had.

    Attributes:
        metrics: of all requests.
        kv_events: publishes what happens to pages; None where nobody wants to know.
        model: None until the engine is ready for the first time.
        is_closing: whether no further request is taken.
    """

    def __init__(self, settings: ServeSettings, engine: EngineClient, *, model_name: str = "") -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = Metrics(engine, model_name=model_name, prefix=settings.metrics_prefix)
        engine.observers.append(self.metrics)
        self._traces: Traces | None = None
        if settings.otlp_traces_endpoint is not None:
            self._traces = Traces(exporting_provider(settings.otlp_traces_endpoint), model_name=model_name)
            engine.observers.append(self._traces)
        self.kv_events: KVEventPublisher | None = None
        if settings.kv_events_endpoint is not None:
            self.kv_events = KVEventPublisher(
                settings.kv_events_endpoint,
                topic=settings.kv_events_topic,
                replay_endpoint=settings.kv_events_replay_endpoint,
            )
            engine.on_kv_events = self.kv_events.publish
        self.model: ServedModel | None = None
        self.is_closing = False

    def close(self) -> None:
        """Sends the traces that are left, which may take a while."""
        if self._traces is not None:
            self._traces.close()

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return not self.is_closing and self.engine.state is EngineState.READY

    def ready_model(self) -> ServedModel:
        """Returns the model.

        Raises:
            ServerClosingError: the server is about to end.
            EngineUnavailableError: the engine takes no requests.
        """
        if self.is_closing:
            raise ServerClosingError("the server is about to end", cure="Ask another one.")
        self.engine.check_available()
        assert self.model is not None, "the engine is ready"
        return self.model

    async def outputs(
        self, asked: Asked, *, is_whole: bool = False
    ) -> AsyncGenerator[tuple[int, TextGenerationOutput]]:
        """Answers prompts at the same time, and yields what is new, with the number of the prompt.

        Args:
            asked: the prompts, for whose answers the caller has places.
            is_whole: whether nothing is wanted of a prompt before all its answers have ended.

        Raises:
            Exception: what one of them failed of; the others are cancelled then.
        """
        async with aclosing(
            _merged([self.engine.answers(prompt, asked, is_whole=is_whole) for prompt in asked.prompts])
        ) as merged:
            async for number, outputs in merged:
                for output in outputs:
                    if output.error is not None:
                        asked.error = output.error
                        raise output.error
                    yield number, output

    async def whole_outputs(self, asked: Asked) -> list[list[TextGenerationOutput]]:
        """Returns for each prompt all its answers. Takes and raises what `outputs` does."""
        pieces: Mapping[tuple[int, int], list[TextGenerationOutput]] = {
            (number, index): [] for number in range(len(asked.prompts)) for index in range(asked.params.n)
        }
        async with aclosing(self.outputs(asked, is_whole=True)) as outputs:
            async for number, output in outputs:
                pieces[number, output.index].append(output)
        joined = {key: TextGenerationOutput.joined(of_answer) for key, of_answer in pieces.items()}
        return [[joined[number, index] for index in range(asked.params.n)] for number in range(len(asked.prompts))]


async def _merged(
    streams: Sequence[AsyncGenerator[list[TextGenerationOutput]]],
) -> AsyncGenerator[tuple[int, list[TextGenerationOutput]]]:
    """Yields what each of several streams yields, with its number. None of them runs ahead of the reader."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for outputs in only:
                yield 0, outputs
        return
    tasks = {number: asyncio.ensure_future(anext(stream)) for number, stream in enumerate(streams)}
    try:
        while tasks:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            for number, task in [item for item in tasks.items() if item[1].done()]:
                del tasks[number]
                try:
                    outputs = task.result()
                except StopAsyncIteration:
                    continue
                yield number, outputs
                tasks[number] = asyncio.ensure_future(anext(streams[number]))
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def _service(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


Served = Annotated[Service, Depends(_service)]
"""The service, as an argument of an endpoint."""
