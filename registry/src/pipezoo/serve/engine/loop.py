"""The engine's loop: messages in, a step, outputs out. Nothing that takes long is done between two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

import torch

from pipezoo.serve.engine.channel import Channel
from pipezoo.serve.engine.kv_events import PageRecorder
from pipezoo.serve.engine.messages import (
    AddAdapter,
    Cancel,
    Counts,
    Done,
    Generate,
    Inspect,
    Load,
    RemoveAdapter,
    Steps,
    ToEngine,
    encode,
)
from pipezoo_core.errors import RankLostError
from pipezoo_core.request import RequestID, TextGenerationOutput, TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pipezoo_core.pipeline import TextGenerationPipeline
    from pipezoo_core.pipeline.request_driver import PreparedRequest

__all__ = ["EngineLoop", "Inbox", "counts_of"]

_NUM_THREADS = 2  # for grammars and adapters, which take long


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request that another thread has prepared."""

    request_id: RequestID
    prepared: PreparedRequest


@dataclass(frozen=True, slots=True)
class _Finished:
    """What came of work in another thread for the message with this number."""

    number: int
    error: Exception | None


Inbox: TypeAlias = "SimpleQueue[ToEngine | _Prepared | _Finished]"
"""What the loop is to look at before its next step."""


class EngineLoop:
    """Serves what the server's process asks, until that is gone.

    Args:
        pipeline: answers.
        channel: to the server's process.
        inbox: what that sends.
        reports_pages: whether to say which pages of the KV cache can be found.
    """

    def __init__(
        self, pipeline: TextGenerationPipeline, channel: Channel, inbox: Inbox, *, reports_pages: bool = False
    ) -> None:
        self._pipeline = pipeline
        self._driver = pipeline.driver()
        self._channel = channel
        self._inbox = inbox
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="pipezoo-long-work")
        self._preparing: set[RequestID] = set()
        self._failed: list[TextGenerationOutput] = []
        managers = pipeline.kv_managers if reports_pages else []
        self._recorders = [PageRecorder(manager, rank) for rank, manager in enumerate(managers)]

    def run(self) -> None:
        """Runs steps for as long as there are requests, and waits for messages where there are none.

        Raises:
            OSError: the server's process is gone.
            RankLostError: another process of the model's is gone, so that no further step can be computed.
            torch.AcceleratorError: likewise of a device, which its driver has given up.
        """
        while True:
            for message in self._messages():
                self._take(message)
            outputs = [*self._failed, *self._driver.step()]
            self._failed.clear()
            kv_events = [recorder.taken() for recorder in self._recorders if recorder.has_events]
            self._channel.send(encode(Steps(outputs, counts_of(self._pipeline), kv_events)))
            for output in outputs:
                if isinstance(output.error, RankLostError | torch.AcceleratorError):
                    raise output.error

    def _messages(self) -> Iterator[ToEngine | _Prepared | _Finished]:
        """Yields what has come; where there is nothing else to do, it waits for the first."""
        has_news = self._failed or any(recorder.has_events for recorder in self._recorders)
        if self._driver.is_idle and not has_news:
            yield self._inbox.get()
        while True:
            try:
                yield self._inbox.get_nowait()
            except Empty:
                return

    def _take(self, message: ToEngine | _Prepared | _Finished) -> None:
        match message:
            case Generate():
                self._begin(message)
            case _Prepared():
                if message.request_id in self._preparing:  # nobody has cancelled it meanwhile
                    self._preparing.remove(message.request_id)
                    self._driver.begin(message.prepared)
            case Cancel(request_id):
                self._preparing.discard(request_id)
                self._driver.cancel(request_id)
            case AddAdapter(number, path):
                self._later(number, lambda: self._pipeline.load_adapter(path))
            case RemoveAdapter(number, name):
                self._later(number, lambda: self._pipeline.unload_adapter(name))
            case Inspect(number):
                self._reply(_finished(number, self._check_integrity))
            case _Finished():
                self._reply(message)
            case Load():
                raise AssertionError("a model is loaded once")

    def _begin(self, message: Generate) -> None:
        try:
            params = SamplingParams(**message.sampling)
            request = TextGenerationRequest(
                prompt=message.prompt, sampling_params=params, lora=message.lora, request_id=message.request_id
            )
        except Exception as error:  # is the request's, and no other's
            self._failed.append(TextGenerationOutput.failed(message.request_id, error))
            return
        if params.constraint is None and not params.bad_words:
            self._driver.begin(self._driver.prepare(request, message.arrival_time))
            return
        self._preparing.add(message.request_id)

        def prepare() -> None:
            if message.request_id not in self._preparing:  # cancelled before its turn came
                return
            prepared = self._driver.prepare(request, message.arrival_time)
            self._inbox.put(_Prepared(message.request_id, prepared))

        self._threads.submit(prepare)

    def _check_integrity(self) -> None:
        for manager in self._pipeline.kv_managers:
            manager.check_integrity()

    def _later(self, number: int, work: Callable[[], None]) -> None:
        """Does in another thread what takes long; the answer goes through the loop, because one thread sends."""
        self._threads.submit(lambda: self._inbox.put(_finished(number, work)))

    def _reply(self, finished: _Finished) -> None:
        counts = counts_of(self._pipeline)
        self._channel.send(encode(Done(finished.number, self._pipeline.adapters, counts, finished.error)))


def _finished(number: int, work: Callable[[], None]) -> _Finished:
    try:
        work()
    except Exception as error:  # is told to who asked for it
        return _Finished(number, error)
    return _Finished(number, None)


def counts_of(pipeline: TextGenerationPipeline) -> Counts:
    """Returns what a pipeline counts, summed over its replicas."""
    managers, scheduler = pipeline.kv_managers, pipeline.scheduler
    metrics = [manager.metrics for manager in managers]
    return Counts(
        num_running=scheduler.num_running,
        num_waiting=scheduler.num_waiting,
        num_pages=sum(manager.total_num_pages for manager in managers),
        num_free_pages=sum(manager.num_free_pages for manager in managers),
        num_preemptions=scheduler.num_preemptions,
        num_prefix_queries=sum(each.prompt_tokens for each in metrics),
        num_prefix_hits=sum(each.prefix_hit_tokens for each in metrics),
    )
