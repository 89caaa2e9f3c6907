"""The requests that somebody waits for, and the steps that whoever waits runs for all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipezoo_core.context import TextContext
from pipezoo_core.distributed import interrupts_deferred
from pipezoo_core.errors import InsufficientPagesError, InvalidRequestError
from pipezoo_core.pipeline.lock_patience import short_patience
from pipezoo_core.pipeline.replica_runners import ReplicaRunners
from pipezoo_core.pipeline.scheduler import Scheduler
from pipezoo_core.process_lock import ProcessLock
from pipezoo_core.request import GenerationStatus, RequestID, TextGenerationOutput

__all__ = ["RunningRequests"]


@dataclass(slots=True)
class _Request:
    """What a request produced and nobody has fetched yet, or why it failed."""

    context: TextContext
    outputs: list[TextGenerationOutput] = field(default_factory=list)
    error: BaseException | None = None
    is_done: bool = False


class RunningRequests:
    """Runs requests of several threads in common steps, and hands each what its own produced.

    Args:
        scheduler: chooses each step's requests.
        runners: run the step.
    """

    def __init__(self, scheduler: Scheduler, runners: ReplicaRunners) -> None:
        self._scheduler = scheduler
        self._runners = runners
        self._requests: dict[RequestID, _Request] = {}
        self._abandoned: deque[_Request] = deque()
        self._lock = ProcessLock()
        self._depth = 0

    def check(self) -> None:
        """Raises ForkedProcessError in a forked child of the process that made this."""
        self._lock.check()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lets nobody else change anything meanwhile."""
        try:
            with self._lock:
                self._forget_abandoned()
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
        finally:
            self._forget_abandoned()

    def run(self, contexts: Sequence[TextContext]) -> Generator[list[TextGenerationOutput]]:
        """Adds requests and yields what they produce, until all are done; releases them however it ends.

        Raises:
            InvalidRequestError: one of the same id is running.
            InsufficientPagesError: no request can begin.
            PipezooError: a request failed, or whatever else ended its step.
        """
        mine = [_Request(context) for context in contexts]
        try:
            with self.exclusive():
                for request in mine:
                    self._add(request)
            while any(not request.is_done or request.outputs or request.error for request in mine):
                with self.exclusive():
                    if not any(request.outputs or request.error for request in mine):
                        with interrupts_deferred(), short_patience():  # others wait for this step, too
                            self._step()
                    outputs = [output for request in mine for output in request.outputs]
                    for request in mine:
                        request.outputs.clear()
                for request in mine:
                    if request.error is not None:
                        raise request.error
                if outputs:
                    yield outputs
        finally:
            self._abandoned.extend(mine)
            self._forget_abandoned()

    def cancel(self, request_id: RequestID) -> None:
        """Ends a request; whoever waits for it gets what it produced so far, with status `CANCELLED`."""
        with self.exclusive():
            request = self._requests.get(request_id)
            if request is not None and not request.is_done:
                request.context.finish(GenerationStatus.CANCELLED)
                rest = self._runners.remaining_text(request_id)
                self._deliver(
                    TextGenerationOutput(request_id=request_id, text=rest, final_status=GenerationStatus.CANCELLED)
                )

    def release(self, request_id: RequestID) -> None:
        """Gives back the request's pages and adapter, and forgets its text.

        Does nothing for one that is released already. One that somebody waits for is cancelled.
        """
        with self.exclusive():
            self.cancel(request_id)
            self._release(request_id)

    def _release(self, request_id: RequestID) -> None:
        self._scheduler.remove(request_id)
        self._runners.release(request_id)

    def _add(self, request: _Request) -> None:
        request_id = request.context.request_id
        if request_id in self._requests:
            raise InvalidRequestError("a request with this id is running already", found=request_id)
        self._requests[request_id] = request
        self._scheduler.add(request.context)

    def _forget_abandoned(self) -> None:
        """Lets go of the requests that nobody waits for any more. Where a thread is inside, it does so when it leaves.

        The collector closes an abandoned generator in whichever thread it happens to run: in the middle of a step, too,
        in one that the step waits for. So this never waits.
        """
        while self._abandoned and self._lock.acquire_at_once():
            try:
                if self._depth > 0:
                    return
                self._depth += 1
                try:
                    while self._abandoned:  # looked at again: between the two above the collector may have come by
                        self._forget(self._abandoned[0])
                        self._abandoned.popleft()
                finally:
                    self._depth -= 1
            finally:
                self._lock.release()

    def _forget(self, request: _Request) -> None:
        request_id = request.context.request_id
        if self._requests.get(request_id) is request:
            self._release(request_id)
            del self._requests[request_id]  # last: an interrupt before leaves it to be forgotten

    def _step(self) -> None:
        """Runs the scheduler's next step and hands out what it produced, or why it failed."""
        inputs = self._scheduler.schedule()
        if not inputs.batches:
            raise InsufficientPagesError(
                "no request can begin, because requests outside the scheduler hold the KV cache's pages or slots",
                cure="Release what was given to `execute` directly.",
            )
        try:
            outcomes = self._runners.run(inputs)
        except BaseException as error:
            outcomes = [error for _ in inputs.batches]
        for batch, outcome in zip(inputs.batches, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                self._fail(batch, outcome)
            else:
                for output in outcome.values():
                    self._deliver(output)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                raise outcome

    def _fail(self, batch: Iterable[RequestID], error: BaseException) -> None:
        """Ends a replica's batch: whatever ends its step concerns all who wait for it, and nobody else."""
        for request_id in batch:
            request = self._requests[request_id]
            request.error = error
            request.is_done = True
            self._release(request_id)

    def _deliver(self, output: TextGenerationOutput) -> None:
        request = self._requests[output.request_id]
        request.outputs.append(output)
        if output.is_done:
            request.is_done = True
            request.error = request.context.error
            self._release(output.request_id)
