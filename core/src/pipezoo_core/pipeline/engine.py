"""The requests that somebody waits for, and the steps that whoever waits runs for all of them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

from pipezoo_core.context import TextContext, TextGenerationInputs
from pipezoo_core.distributed import interrupts_deferred
from pipezoo_core.errors import ClosedPipelineError, InsufficientPagesError, InvalidRequestError, shown
from pipezoo_core.pipeline.call import Call, PendingRequest
from pipezoo_core.pipeline.lock_patience import short_patience
from pipezoo_core.pipeline.model_runner import ModelRunner, Outcome
from pipezoo_core.pipeline.replicas import ReplicaThreads
from pipezoo_core.process_lock import ProcessLock
from pipezoo_core.request import GenerationStatus, RequestID, TextGenerationOutput
from pipezoo_core.scheduling import Scheduler

__all__ = ["Engine", "closed_error"]

_Work: TypeAlias = tuple[ModelRunner, list[TextContext]]
"""A replica, and the batch that it runs in a step."""


def closed_error() -> ClosedPipelineError:
    """Returns what a call to a pipeline that is closed raises."""
    return ClosedPipelineError("the pipeline is closed", cure="Load the model again.")


class Engine:
    """Serves the requests of several threads in common steps, and delivers to each caller what its own produced.

    Who begins, cancels or releases a request never waits for a step: in the middle of one, the change is made at its
    end, by whoever runs it. So a signal handler may do it, and a finalizer, which the collector runs in any thread, one
    that the step waits for among them.

    Args:
        scheduler: chooses each step's requests.
        runners: run the step, one per replica.
    """

    def __init__(self, scheduler: Scheduler, runners: Sequence[ModelRunner]) -> None:
        self._scheduler: Scheduler | None = scheduler
        self._runners = tuple(runners)
        self._threads = ReplicaThreads(len(runners)) if len(runners) > 1 else None
        self._requests: dict[RequestID, PendingRequest] = {}
        self._changes: deque[Callable[[], None]] = deque()
        self._lock = ProcessLock()
        self._inside: int | None = None  # the thread that has the lock and is not to take it again

    @property
    def scheduler(self) -> Scheduler:
        """Chooses each step's requests.

        Raises:
            ClosedPipelineError: this is closed.
        """
        scheduler = self._scheduler
        if scheduler is None:
            raise closed_error()
        return scheduler

    @property
    def is_closed(self) -> bool:
        """Whether nothing is computed any more."""
        return self._scheduler is None

    @property
    def is_here(self) -> bool:
        """Whether this is the process that made this, and no forked child of it."""
        return self._lock.is_here

    def check(self) -> None:
        """Raises ForkedProcessError in a forked child of the process that made this."""
        self._lock.check()

    def check_open(self) -> None:
        """Raises ClosedPipelineError when this is closed, and what `check` does."""
        self.check()
        if self.is_closed:
            raise closed_error()

    def check_outside(self) -> None:
        """Raises InvalidRequestError in the middle of a step: its thread would wait for itself."""
        self.check()
        is_replica = self._threads is not None and self._threads.is_here
        if is_replica or self._inside == threading.get_ident():
            raise InvalidRequestError(
                "this thread is in the middle of a step",
                cure="Generate nothing in logits processors, signal handlers and finalizers; `cancel` and `release` "
                "work there.",
            )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps everybody else from changing anything meanwhile.

        Raises:
            InvalidRequestError: the thread is in the middle of a step already, by way of a logits processor, say.
        """
        self.check_outside()
        try:
            with self._lock:
                self._make_changes()
                self._inside = threading.get_ident()
                try:
                    yield
                finally:
                    self._inside = None
        finally:
            self._make_changes()

    def begin(self, contexts: Sequence[TextContext]) -> Call:
        """Adds requests. One that cannot be added gets an output with the error."""
        requests = [PendingRequest(context) for context in contexts]
        call = Call(requests, self._forget_later)
        for request in requests:
            self._change(partial(self._add, request))
        return call

    def advance(self, call: Call) -> None:
        """Runs a step for everybody's requests, unless there is an output for this call.

        Raises:
            InsufficientPagesError: no request can begin.
        """
        with self.exclusive():
            if not call.has_outputs and not call.is_over:
                with interrupts_deferred(), short_patience():  # others wait for this step, too
                    self.step()

    def outputs_of(self, contexts: Sequence[TextContext]) -> Generator[list[TextGenerationOutput]]:
        """Adds requests and yields what they produce, until all are done; releases them however it ends.

        Raises:
            InsufficientPagesError: no request can begin.
        """
        call = self.begin(contexts)
        try:
            while not call.is_over:
                if outputs := call.take():
                    yield outputs
                else:
                    self.advance(call)
        finally:
            call.close()

    def step(self) -> None:
        """Runs a step for everybody's requests. The caller is inside `exclusive`.

        Raises:
            InsufficientPagesError: no request can begin.
            BaseException: one that is no Exception, such as KeyboardInterrupt.
        """
        begin = time.perf_counter()
        work = self._assigned(self.scheduler.schedule())
        if not work:
            raise InsufficientPagesError(
                "no request can begin, because requests outside the scheduler hold the KV cache's pages or slots",
                cure="Release what was given to `execute` directly.",
            )
        num_rows, largest = max((sum(each.active_length for each in batch), len(batch)) for _, batch in work)
        outcomes = self._run(work, ModelRunner.step)
        self._deliver(work, outcomes)
        if not any(isinstance(outcome, BaseException) for outcome in outcomes):
            self.scheduler.note_time(largest, num_rows, time.perf_counter() - begin)

    def execute(self, inputs: TextGenerationInputs) -> dict[RequestID, TextGenerationOutput]:
        """Runs batches that no scheduler has chosen; the contract is that of `TextGenerationPipeline.execute`."""
        outputs: dict[RequestID, TextGenerationOutput] = {}
        with self.exclusive():
            self._check_executable(inputs)
            work = self._assigned(inputs)
            for outcome in self._run(work, lambda runner, batch: runner.execute(batch, inputs.num_steps)):
                if isinstance(outcome, BaseException):
                    raise outcome
                outputs |= outcome
        return outputs

    def cancel(self, request_id: RequestID) -> None:
        """Ends a request; whoever waits for it gets what it produced so far, with status `CANCELLED`.

        Raises:
            InvalidRequestError: this cannot be the id of a request.
            ForkedProcessError: this is a forked child.
        """
        self._check_id(request_id)
        self._change(partial(self._cancel, request_id))

    def close(self) -> None:
        """Cancels all requests, and lets go of the scheduler and the runners. Requests that are added later fail.

        One that was interrupted is completed by another one.

        Raises:
            InvalidRequestError: the thread is in the middle of a step.
            ForkedProcessError: this is a forked child.
        """
        with self.exclusive():
            for request_id in self._requests:
                self._cancel(request_id)
            if self._threads is not None:
                self._threads.close()
            self._scheduler = None
            self._runners = ()

    def release(self, request_id: RequestID) -> None:
        """Gives back the request's pages and adapter, and forgets its text.

        Does nothing for one that is released already. One that somebody waits for is cancelled.

        Raises:
            What `cancel` raises.
        """
        self._check_id(request_id)
        self._change(partial(self._cancel, request_id))
        self._change(partial(self._release, request_id))

    def _check_id(self, request_id: RequestID) -> None:
        self.check()
        if not isinstance(request_id, str):
            raise InvalidRequestError("the id of a request is text", found=shown(request_id))

    def _change(self, change: Callable[[], None]) -> None:
        self._changes.append(change)
        self._make_changes()

    def _make_changes(self) -> None:
        """Makes the changes that were asked for. Where a thread is inside, it does so when it leaves."""
        while self._changes and self._lock.acquire_at_once():
            try:
                if self._inside is not None:
                    return
                self._inside = threading.get_ident()
                try:
                    while self._changes:  # looked at again: the collector or a handler may have come by
                        try:
                            self._changes[0]()
                        except Exception:  # it would fail again, and those behind it would never be made
                            self._changes.popleft()
                            raise
                        self._changes.popleft()  # after it: one that an interrupt ends is made again
                finally:
                    self._inside = None
            finally:
                self._lock.release()

    def _add(self, request: PendingRequest) -> None:
        request_id = request.context.request_id
        if self._requests.get(request_id) is request:
            return
        try:
            self._check_new(request_id)
            self.scheduler.add(request.context)
            self._requests[request_id] = request
        except Exception as refusal:  # whatever refuses a request concerns it alone
            request.outputs.append(TextGenerationOutput.failed(request_id, refusal))
            request.is_done = True

    def _check_new(self, request_id: RequestID) -> None:
        if request_id in self._requests:
            raise InvalidRequestError("a request with this id is running already", found=shown(request_id))

    def _cancel(self, request_id: RequestID) -> None:
        request = self._requests.get(request_id)
        if request is not None and not request.is_done:
            request.context.finish(GenerationStatus.CANCELLED)
            rest = "".join(runner.remaining_text(request_id) for runner in self._runners)  # one of them has any
            self._deliver_output(request.context.output(text=rest))

    def _release(self, request_id: RequestID) -> None:
        if self._scheduler is not None:
            self._scheduler.remove(request_id)
        for runner in self._runners:
            runner.release(request_id)

    def _forget_later(self, requests: Sequence[PendingRequest]) -> None:
        self._change(partial(self._forget, requests))

    def _forget(self, requests: Sequence[PendingRequest]) -> None:
        for request in requests:
            request_id = request.context.request_id
            if self._requests.get(request_id) is request:
                self._release(request_id)
                del self._requests[request_id]  # last: an interrupt before leaves it to be forgotten

    def _check_executable(self, inputs: TextGenerationInputs) -> None:
        self.check_open()
        for context in inputs.batch:
            self._check_new(context.request_id)

    def _assigned(self, inputs: TextGenerationInputs) -> list[_Work]:
        if len(inputs.batches) > len(self._runners):
            raise InvalidRequestError(
                "there are more batches than replicas", found=len(inputs.batches), allowed=len(self._runners)
            )
        pairs = zip(self._runners, inputs.batches, strict=False)
        return [(runner, list(batch.values())) for runner, batch in pairs if batch]

    def _run(
        self, work: Sequence[_Work], run: Callable[[ModelRunner, Sequence[TextContext]], Outcome]
    ) -> Sequence[Outcome]:
        """Runs one batch per replica, all at the same time, and returns what came of each."""
        try:
            if self._threads is None:
                return [run(runner, batch) for runner, batch in work]
            return self._threads.map([partial(run, runner, batch) for runner, batch in work])
        except BaseException as error:
            return [error for _ in work]

    def _deliver(self, work: Sequence[_Work], outcomes: Sequence[Outcome]) -> None:
        """Hands out what a step produced, or why it failed.

        What ends a replica's step concerns all requests of its batch, and no others.
        """
        for (_, batch), outcome in zip(work, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                for context in batch:
                    context.finish(GenerationStatus.ERROR, outcome)
                    self._deliver_output(context.output())
            else:
                for output in outcome.values():
                    self._deliver_output(output)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                raise outcome

    def _deliver_output(self, output: TextGenerationOutput) -> None:
        request = self._requests[output.request_id]
        request.outputs.append(output)
        if output.is_done:
            self._release(output.request_id)
            request.is_done = True
