"""One step of all replicas of a model, at the same time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property
from typing import TypeAlias

from pipezoo_core.context import TextContext
from pipezoo_core.errors import InvalidRequestError
from pipezoo_core.interfaces import PipelineModel
from pipezoo_core.pipeline.batch_runner import BatchRunner
from pipezoo_core.request import RequestID, TextGenerationInputs, TextGenerationOutput
from pipezoo_core.tokenizer import TextTokenizer

__all__ = ["Outcome", "ReplicaRunners"]

Outcome: TypeAlias = dict[RequestID, TextGenerationOutput] | BaseException
"""What came of a replica's batch: what each request produced, or why it failed."""


class ReplicaRunners:
    """A `BatchRunner` per replica. Of the batches of a step one runs in the caller's thread, each other one in its own.

    Args:
        models: the replicas.
        tokenizer: turns tokens into text.
    """

    def __init__(self, models: Sequence[PipelineModel[TextContext]], tokenizer: TextTokenizer) -> None:
        self._runners = [BatchRunner(model, tokenizer) for model in models]

    def release(self, request_id: RequestID) -> None:
        """As `BatchRunner.release`, wherever the request is."""
        for runner in self._runners:
            runner.release(request_id)

    def remaining_text(self, request_id: RequestID) -> str:
        """As `BatchRunner.remaining_text`, wherever the request is."""
        return "".join(runner.remaining_text(request_id) for runner in self._runners)  # one has any

    def run(self, inputs: TextGenerationInputs) -> list[Outcome]:
        """Runs all batches, and returns what came of each.

        Raises:
            InvalidRequestError: there are more batches than replicas.
        """
        if len(inputs.batches) > len(self._runners):
            raise InvalidRequestError(
                "there are more batches than replicas", found=len(inputs.batches), allowed=len(self._runners)
            )

        def run(replica: int) -> Outcome:
            try:
                return self._runners[replica].run(list(inputs.batches[replica].values()), inputs.num_steps)
            except BaseException as error:
                return error

        outcomes: list[Outcome] = [{} for _ in inputs.batches]
        busy = [replica for replica, batch in enumerate(inputs.batches) if batch]
        futures: dict[int, Future[Outcome]] = {}
        try:
            for replica in busy[1:]:
                futures[replica] = self._threads.submit(run, replica)
            for replica in busy[:1]:
                outcomes[replica] = run(replica)
        finally:
            _join(futures.values())
        for replica, future in futures.items():
            outcomes[replica] = future.result()
        return outcomes

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=len(self._runners) - 1, thread_name_prefix="pipezoo-replica")


def _join(futures: Collection[Future[Outcome]]) -> None:
    """Waits until the replicas' threads are through, whatever comes in between: their pages are in use until then."""
    try:
        wait(futures)
    except BaseException:
        _join(futures)
        raise
