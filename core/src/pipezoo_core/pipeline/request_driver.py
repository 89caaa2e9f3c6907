"""Requests that come and go while one loop runs the steps, as in a server's engine."""

from __future__ import annotations

from dataclasses import dataclass

from pipezoo_core.context import TextContext
from pipezoo_core.interfaces.answers import Answers
from pipezoo_core.interfaces.generate import new_contexts
from pipezoo_core.pipeline.call import Call
from pipezoo_core.pipeline.engine import Engine
from pipezoo_core.request import RequestID, TextGenerationOutput, TextGenerationRequest
from pipezoo_core.tokenizer import TextTokenizer

__all__ = ["PreparedRequest", "RequestDriver"]


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that can begin, or why it cannot.

    Attributes:
        answers: what is run for it.
        contexts: one for each answer; none where it failed.
        failed: an output with the error, where it did.
    """

    answers: Answers
    contexts: list[TextContext]
    failed: list[TextGenerationOutput]


@dataclass(frozen=True, slots=True)
class _Running:
    answers: Answers
    call: Call


class RequestDriver:
    """Runs steps for requests that are begun and cancelled between them, and never waits for one of them.

    All but `prepare` is called by one thread. Others may use the pipeline meanwhile, as ever.

    Args:
        engine: runs the steps.
        tokenizer: makes the contexts.
    """

    def __init__(self, engine: Engine, tokenizer: TextTokenizer) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._running: dict[RequestID, _Running] = {}
        self._failed: list[TextGenerationOutput] = []

    @property
    def is_idle(self) -> bool:
        """Whether a step would find nothing to do."""
        return not self._running and not self._failed

    def prepare(self, request: TextGenerationRequest, arrival_time: float | None = None) -> PreparedRequest:
        """Makes the contexts of a request with complete settings. Any thread may do so.

        It takes long where there is a text to make tokens of, or a grammar to compile, and next to nothing else.

        Args:
            request: its id is that of no other request that runs.
            arrival_time: when it was handed over, by `time.monotonic`; None for now.
        """
        answers = Answers([request])
        if arrival_time is not None:
            answers.arrival_time = arrival_time
        contexts, failed = new_contexts(self._tokenizer, answers)
        return PreparedRequest(answers, contexts, answers.named(failed))

    def begin(self, prepared: PreparedRequest) -> None:
        """Lets a request wait for its first step."""
        self._failed += prepared.failed
        if prepared.contexts:
            request_id = prepared.answers.by_prompt[0][0].request_id
            self._running[request_id] = _Running(prepared.answers, self._engine.begin(prepared.contexts))

    def cancel(self, request_id: RequestID) -> None:
        """Ends a request without a further output, and gives back what it holds. Does nothing for one not known."""
        if (running := self._running.pop(request_id, None)) is not None:
            running.call.close()

    def step(self) -> list[TextGenerationOutput]:
        """Runs a step, unless there is something to hand out already, and returns what is new of all requests.

        What fails a step fails the requests that were to be in it: their outputs have the error. So does what keeps all
        requests from beginning.
        """
        outputs = self._taken()
        if not outputs and self._running:
            try:
                self._engine.advance(next(iter(self._running.values())).call)
            except Exception as error:  # whatever a step failed of, its requests have to end
                outputs = self._all_failed(error)
            outputs += self._taken()
        return outputs

    def _taken(self) -> list[TextGenerationOutput]:
        outputs, self._failed = self._failed, []
        for request_id, running in list(self._running.items()):
            if running.call.has_outputs:
                outputs += running.answers.named(running.call.take())
            if running.call.is_over:
                self.cancel(request_id)
        return outputs

    def _all_failed(self, error: Exception) -> list[TextGenerationOutput]:
        outputs = self._taken()
        for request_id, running in list(self._running.items()):
            failed = [TextGenerationOutput.failed(each.request_id, error) for each in running.answers.requests]
            outputs += running.answers.named(failed)
            self.cancel(request_id)
        return outputs
