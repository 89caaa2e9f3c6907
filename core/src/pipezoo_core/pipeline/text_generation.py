"""The pipeline: requests go in, the scheduler's steps go through the model, text comes out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

from pipezoo_core.config import PipelineConfig
from pipezoo_core.context import TextContext
from pipezoo_core.interfaces import GenerateMixin, PipelineModel
from pipezoo_core.interfaces.generate import as_requests, join_outputs
from pipezoo_core.kv_cache import PagedKVCacheManager
from pipezoo_core.memory import MemoryPlan
from pipezoo_core.pipeline.replica_runners import ReplicaRunners
from pipezoo_core.pipeline.running_requests import RunningRequests
from pipezoo_core.pipeline.scheduler import Scheduler
from pipezoo_core.request import (
    ChatMessage,
    RequestID,
    TextGenerationInputs,
    TextGenerationOutput,
    TextGenerationRequest,
)
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.tokenizer import TextTokenizer

__all__ = ["TextGenerationPipeline"]


class TextGenerationPipeline(GenerateMixin[TextContext, TextGenerationRequest]):
    """Generates text with one model, or several replicas of it.

    Calls from several threads or tasks share the model's steps: whoever waits for an output runs the next step, for
    everybody's requests. `execute` is the step alone, for those who schedule themselves.

    Args:
        pipeline_config: how to run it.
        models: the replicas, at least one, each with its own weights and KV cache.
        tokenizer: holds the pipeline's default sampling settings.
        memory_plan: what the memory is used for.

    Attributes:
        models: the replicas. An adapter that is loaded later is loaded into the `lora_manager` of each.
        memory_plan: what the memory is used for.
        scheduler: assigns requests to replicas, and chooses each step's.
    """

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        models: Sequence[PipelineModel[TextContext]],
        tokenizer: TextTokenizer,
        memory_plan: MemoryPlan,
    ) -> None:
        self._pipeline_config = pipeline_config
        self._tokenizer = tokenizer
        self.models = list(models)
        self.memory_plan = memory_plan
        self.scheduler = Scheduler(
            self.kv_managers,
            [model.lora_manager for model in models],
            max_batch_size=pipeline_config.max_batch_size,
            max_batch_tokens=pipeline_config.max_batch_tokens,
        )
        self._runners = ReplicaRunners(models, tokenizer)
        self._running = RunningRequests(self.scheduler, self._runners)

    @property
    def model(self) -> PipelineModel[TextContext]:
        """The first replica; the others are in `models`."""
        return self.models[0]

    @property
    def kv_managers(self) -> list[PagedKVCacheManager]:
        """The KV cache managers, one per replica."""
        return [model.kv_manager for model in self.models]

    @property
    def pipeline_config(self) -> PipelineConfig:
        """How the pipeline runs."""
        return self._pipeline_config

    @property
    def tokenizer(self) -> TextTokenizer:
        """Turns requests into contexts."""
        return self._tokenizer

    @property
    def sampling_params(self) -> SamplingParams:
        """The settings of requests that bring none: our defaults under the model's generation config."""
        return self._tokenizer.sampling_params

    def generate(self, prompts: Any, *, lora: str | None = None, **sampling: Any) -> list[TextGenerationOutput]:
        """Answers prompts, in their order.

        Args:
            prompts: a string (completed as it is), a chat (a list of messages), a `TextGenerationRequest`, or a list
                of these.
            lora: name of the loaded adapter to answer with; None leaves it to the requests.
            **sampling: settings of `SamplingParams` that differ from the pipeline's defaults.

        Raises:
            InvalidSettingError: a sampling setting is unknown or out of range.
            InvalidRequestError: a prompt is empty, too long, or of an unknown kind, or a grammar cannot be used. No
                request was begun then.
            AdapterNotFoundError: no adapter of this name is loaded. No prompt was answered then.
            InvalidGrammarError: an answer cannot follow its grammar any further.
            NonFiniteLogitsError: the model computed NaN or infinity for a prompt.
            MissingDependencyError: there is a grammar, and llguidance is not installed.
            ForkedProcessError: the model was loaded in another process, of which this is a forked child.
        """
        self._running.check()
        requests = self._with_settings(as_requests(prompts), lora, sampling)
        return join_outputs(requests, self._run(requests))

    async def generate_async(
        self, prompts: Any, *, lora: str | None = None, **sampling: Any
    ) -> AsyncIterator[list[TextGenerationOutput]]:
        """Answers prompts and yields, step by step, what is new.

        Prompts are tokenized and steps run in a thread, the same one for all tasks: the event loop goes on meanwhile.

        Args:
            prompts: as for `generate`.
            lora: as for `generate`.
            **sampling: as for `generate`.
        """
        self._running.check()
        requests = self._with_settings(as_requests(prompts), lora, sampling)

        def all_steps() -> Generator[list[TextGenerationOutput]]:
            yield from self._run(requests)

        steps = all_steps()
        in_thread = asyncio.get_running_loop().run_in_executor
        step: asyncio.Future[Any] | None = None
        try:
            while True:
                self._running.check()  # a child that goes on with its parent's answers has no such thread
                step = in_thread(self._thread, next, steps, None)
                outputs = await asyncio.shield(step)
                if outputs is None:
                    return
                yield outputs
        finally:
            if step is not None and not step.done():
                await asyncio.wait([step])  # a generator cannot be closed while a thread is inside
            steps.close()

    def stream(self, prompt: Any, *, lora: str | None = None, **sampling: Any) -> Iterator[str]:
        """Answers one prompt and yields its text, piece by piece.

        Args:
            prompt: a string, a chat, or a `TextGenerationRequest`.
            lora: as for `generate`.
            **sampling: as for `generate`.
        """
        self._running.check()
        for outputs in self._run(self._with_settings(as_requests([prompt]), lora, sampling)):
            yield from (output.text for output in outputs if output.text)

    def chat(
        self, messages: Sequence[ChatMessage], *, lora: str | None = None, **sampling: Any
    ) -> TextGenerationOutput:
        """Answers a chat, `{"role": …, "content": …}` each, by the model's chat template.

        Args:
            messages: the chat so far.
            lora: as for `generate`.
            **sampling: as for `generate`.
        """
        return self.generate(TextGenerationRequest(messages=messages), lora=lora, **sampling)[0]

    def cancel(self, request_id: RequestID) -> None:
        """Ends a request; whoever waits for it gets what it produced so far, with status `CANCELLED`."""
        self._running.cancel(request_id)

    def release(self, request_id: RequestID) -> None:
        """Gives back the request's pages and adapter, and forgets its text.

        Does nothing for one that is released already.
        """
        self._running.release(request_id)

    def execute(self, inputs: TextGenerationInputs) -> dict[RequestID, TextGenerationOutput]:
        """Runs one batch per replica, all at the same time.

        Args:
            inputs: contexts with their chunks set. One that is not claimed yet is, and feeds all its tokens. A request
                stays with its replica until it is released.

        Returns:
            What each request produced; nothing for one whose prompt is not through yet. A request that failed, because
            it cannot follow its grammar or its logits are not finite, is `CANCELLED`, and `context.error` says why.

        Raises:
            InvalidRequestError: there are more batches than replicas.
            InsufficientPagesError: the pages do not suffice. Nothing was computed then in this replica.
            AdapterNotFoundError: a context that is not claimed yet names an adapter that is not loaded.
            AdapterSlotsError: there are fewer slots than adapters. Nothing was computed then in this replica.
            ForkedProcessError: the model was loaded in another process, of which this is a forked child.
        """
        outputs: dict[RequestID, TextGenerationOutput] = {}
        with self._running.exclusive():
            for outcome in self._runners.run(inputs):
                if isinstance(outcome, BaseException):
                    raise outcome
                outputs |= outcome
        return outputs

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="pipezoo-steps")

    def _with_settings(
        self, requests: Sequence[TextGenerationRequest], lora: str | None, sampling: dict[str, Any]
    ) -> list[TextGenerationRequest]:
        if lora is not None:
            requests = [replace(request, lora=lora) for request in requests]
        if not sampling:
            return list(requests)
        return [
            replace(request, sampling_params=(request.sampling_params or self.sampling_params).updated(**sampling))
            for request in requests
        ]

    def _run(self, requests: Sequence[TextGenerationRequest]) -> Generator[list[TextGenerationOutput]]:
        return self._running.run([self._tokenizer.new_context(request) for request in requests])
