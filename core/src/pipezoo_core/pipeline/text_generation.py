"""The pipeline: requests go in, the scheduler's steps go through the model, text comes out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

from pipezoo_core.config import PipelineConfig
from pipezoo_core.context import TextContext, TextGenerationInputs
from pipezoo_core.interfaces import GenerateMixin, PipelineModel
from pipezoo_core.interfaces.generate import as_requests, checked, is_batch, join_outputs, new_contexts
from pipezoo_core.kv_cache import PagedKVCacheManager
from pipezoo_core.memory import MemoryPlan
from pipezoo_core.pipeline.engine import Call, Engine
from pipezoo_core.pipeline.model_runner import ModelRunner
from pipezoo_core.request import (
    ChatMessage,
    RequestID,
    TextGenerationOutput,
    TextGenerationRequest,
)
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.scheduling import Scheduler
from pipezoo_core.tokenizer import TextTokenizer

__all__ = ["TextGenerationPipeline"]

_T = TypeVar("_T")

_NUM_TOKENIZING = 4  # threads, so that a long prompt does not hold up a short one


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
        self._engine = Engine(self.scheduler, [ModelRunner(model, tokenizer) for model in models])
        self._step: Future[Exception | None] | None = None
        self._step_lock = threading.Lock()

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

        A prompt by itself raises what it fails of. In a list each one has its output: one that failed has the status
        `ERROR` and an `error`, and the others are answered.

        Args:
            prompts: a string (completed as it is), a chat (a list of messages), a `TextGenerationRequest`, or a list
                of these.
            lora: name of the loaded adapter to answer with; None leaves it to the requests.
            **sampling: settings of `SamplingParams` that differ from the pipeline's defaults.

        Raises:
            InvalidSettingError: a sampling setting is unknown or out of range.
            InvalidRequestError: a prompt is of an unknown kind, or two requests have the same id. No request was begun
                then.

        These a prompt by itself raises, and in a list they are in its output:
            InvalidRequestError: it is empty or too long, or has a token that is not in the vocabulary.
            AdapterNotFoundError: no adapter of this name is loaded.
            InvalidGrammarError: the grammar cannot be used, or the answer cannot follow it any further.
            NonFiniteLogitsError: the model computed NaN or infinity for it.
            MissingDependencyError: there is a grammar, and llguidance is not installed.
            ForkedProcessError: the model was loaded in another process, of which this is a forked child.
        """
        self._engine.check()
        requests = self._with_settings(as_requests(prompts), lora, sampling)
        return join_outputs(requests, self._run(requests, in_batch=is_batch(prompts)))

    async def generate_async(
        self, prompts: Any, *, lora: str | None = None, **sampling: Any
    ) -> AsyncIterator[list[TextGenerationOutput]]:
        """Answers prompts and yields, step by step, what is new.

        The event loop goes on meanwhile: prompts are tokenized in threads, and steps run in one, the same one for all
        tasks. A task that waits asks for the next step if nobody else did, and looks for outputs after it; so no task
        waits for another's turn.

        Args:
            prompts: as for `generate`.
            lora: as for `generate`.
            **sampling: as for `generate`.

        Raises:
            What `generate` does.
        """
        self._engine.check()
        requests, in_batch = as_requests(prompts), is_batch(prompts)

        def tokenized() -> tuple[list[TextContext], list[TextGenerationOutput]]:
            return new_contexts(self._tokenizer, self._with_settings(requests, lora, sampling))

        contexts, failed = await asyncio.get_running_loop().run_in_executor(self._prompt_threads, tokenized)
        call = self._engine.begin(contexts)
        try:
            if failed:
                yield checked(failed, in_batch=in_batch)
            while not call.is_over:
                self._engine.check()  # a child that goes on with its parent's answers has none of its threads
                if outputs := call.take():
                    yield checked(outputs, in_batch=in_batch)
                elif (error := await _result(self._next_step(call))) is not None and not call.has_outputs:
                    raise error
        finally:
            call.close()
            if self._step is not None and not self._step.done() and self._engine.is_here:
                await _result(self._step)  # at its end the call's pages are back

    def stream(self, prompt: Any, *, lora: str | None = None, **sampling: Any) -> Iterator[str]:
        """Answers one prompt and yields its text, piece by piece.

        Args:
            prompt: a string, a chat, or a `TextGenerationRequest`.
            lora: as for `generate`.
            **sampling: as for `generate`.
        """
        self._engine.check()
        for outputs in self._run(self._with_settings(as_requests([prompt]), lora, sampling), in_batch=False):
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
        self._engine.cancel(request_id)

    def release(self, request_id: RequestID) -> None:
        """Gives back the request's pages and adapter, and forgets its text.

        Does nothing for one that is released already.
        """
        self._engine.release(request_id)

    def execute(self, inputs: TextGenerationInputs) -> dict[RequestID, TextGenerationOutput]:
        """Runs one batch per replica, all at the same time.

        Args:
            inputs: contexts with their chunks set. One that is not claimed yet is, and feeds all its tokens. A request
                stays with its replica until it is released.

        Returns:
            What each request produced; nothing for one whose prompt is not through yet. A request that failed, because
            it cannot follow its grammar or its logits are not finite, has the status `ERROR`, and its output's
            `error`, which is its context's, says why.

        Raises:
            InvalidRequestError: there are more batches than replicas.
            InsufficientPagesError: the pages do not suffice. Nothing was computed then in this replica.
            AdapterNotFoundError: a context that is not claimed yet names an adapter that is not loaded.
            AdapterSlotsError: there are fewer slots than adapters. Nothing was computed then in this replica.
            ForkedProcessError: the model was loaded in another process, of which this is a forked child.
        """
        return self._engine.execute(inputs)

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="pipezoo-steps")

    @cached_property
    def _prompt_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=_NUM_TOKENIZING, thread_name_prefix="pipezoo-prompts")

    def _next_step(self, call: Call) -> Future[Exception | None]:
        """Returns the step that runs in the thread, which is begun for this call where there is none."""

        def advance() -> Exception | None:
            try:
                self._engine.advance(call)
            except Exception as error:  # for all who wait for the step; what fails a request is in its output
                return error
            return None

        with self._step_lock:
            if self._step is None or self._step.done():
                self._step = self._thread.submit(advance)
            return self._step

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

    def _run(
        self, requests: Sequence[TextGenerationRequest], *, in_batch: bool
    ) -> Generator[list[TextGenerationOutput]]:
        contexts, failed = new_contexts(self._tokenizer, requests)
        if failed:
            yield checked(failed, in_batch=in_batch)
        for outputs in self._engine.outputs_of(contexts):
            yield checked(outputs, in_batch=in_batch)


async def _result(step: Future[_T]) -> _T:
    """Waits for what runs in a thread. A task that is cancelled meanwhile leaves it as it is, for the other tasks."""
    loop = asyncio.get_running_loop()
    end = loop.create_future()

    def set_end() -> None:
        if not end.done():
            end.set_result(None)

    def wake(_: Future[_T]) -> None:
        with suppress(RuntimeError):  # the loop is closed by now
            loop.call_soon_threadsafe(set_end)

    step.add_done_callback(wake)
    await end
    return step.result()
