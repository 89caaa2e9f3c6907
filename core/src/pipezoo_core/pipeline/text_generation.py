"""The pipeline: requests go in, the scheduler's steps go through the model, text comes out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pipezoo_core.config import PipelineConfig
from pipezoo_core.context import TextContext
from pipezoo_core.errors import InsufficientPagesError, InvalidRequestError
from pipezoo_core.interfaces import GenerateMixin, ModelInputs, ModelOutputs, PipelineModel
from pipezoo_core.interfaces.generate import as_requests, join_outputs
from pipezoo_core.kv_cache import PagedKVCacheManager
from pipezoo_core.memory import MemoryPlan
from pipezoo_core.pipeline.sampler import sample
from pipezoo_core.pipeline.scheduler import Scheduler
from pipezoo_core.request import (
    ChatMessage,
    GenerationStatus,
    LogProbabilities,
    RequestID,
    TextGenerationInputs,
    TextGenerationOutput,
    TextGenerationRequest,
)
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.tokenizer import TextStream, TextTokenizer

__all__ = ["TextGenerationPipeline"]


@dataclass(slots=True)
class _Request:
    """A request that someone waits for: what it produced and nobody has fetched yet, or why it failed."""

    context: TextContext
    outputs: list[TextGenerationOutput] = field(default_factory=list)
    error: BaseException | None = None
    is_done: bool = False


class TextGenerationPipeline(GenerateMixin[TextContext, TextGenerationRequest]):
    """Generates text with one model.

    Calls from several threads or tasks share the model's steps: whoever waits for an output runs the next step, for
    everybody's requests. `execute` is the step alone, for those who schedule themselves.

    Args:
        pipeline_config: how to run it.
        model: with its KV cache.
        tokenizer: holds the pipeline's default sampling settings.
        memory_plan: what the memory is used for.
    """

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        model: PipelineModel[TextContext],
        tokenizer: TextTokenizer,
        memory_plan: MemoryPlan,
    ) -> None:
        self._pipeline_config = pipeline_config
        self._tokenizer = tokenizer
        self.model = model
        self.memory_plan = memory_plan
        self.scheduler = Scheduler(
            model.kv_manager,
            max_batch_size=pipeline_config.max_batch_size,
            max_batch_tokens=pipeline_config.max_batch_tokens,
        )
        self._streams: dict[RequestID, TextStream] = {}
        self._requests: dict[RequestID, _Request] = {}
        self._lock = threading.RLock()

    @property
    def kv_managers(self) -> list[PagedKVCacheManager]:
        """The KV cache manager of the one replica."""
        return [self.model.kv_manager]

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

    def generate(self, prompts: Any, **sampling: Any) -> list[TextGenerationOutput]:
        """Answers prompts, in their order.

        Args:
            prompts: a string (completed as it is), a chat (a list of messages), a `TextGenerationRequest`, or a list
                of these.
            **sampling: settings of `SamplingParams` that differ from the pipeline's defaults.

        Raises:
            InvalidSettingError: a sampling setting is unknown or out of range.
            InvalidRequestError: a prompt is empty, too long, or of an unknown kind. No request was begun then.
        """
        requests = self._with_settings(as_requests(prompts), sampling)
        return join_outputs(requests, self._run(requests))

    async def generate_async(self, prompts: Any, **sampling: Any) -> AsyncIterator[list[TextGenerationOutput]]:
        """Answers prompts and yields, step by step, what is new.

        Steps run in a thread of their own, so the event loop goes on meanwhile.

        Args:
            prompts: as for `generate`.
            **sampling: as for `generate`.
        """
        steps = self._run(self._with_settings(as_requests(prompts), sampling))
        step: asyncio.Future[Any] | None = None
        try:
            while True:
                step = asyncio.ensure_future(asyncio.to_thread(next, steps, None))
                outputs = await asyncio.shield(step)
                if outputs is None:
                    return
                yield outputs
        finally:
            if step is not None and not step.done():
                await asyncio.wait([step])  # a generator cannot be closed while a thread is inside
            steps.close()

    def stream(self, prompt: Any, **sampling: Any) -> Iterator[str]:
        """Answers one prompt and yields its text, piece by piece.

        Args:
            prompt: a string, a chat, or a `TextGenerationRequest`.
            **sampling: as for `generate`.
        """
        for outputs in self._run(self._with_settings(as_requests([prompt]), sampling)):
            yield from (output.text for output in outputs if output.text)

    def chat(self, messages: Sequence[ChatMessage], **sampling: Any) -> TextGenerationOutput:
        """Answers a chat, `{"role": …, "content": …}` each, by the model's chat template.

        Args:
            messages: the chat so far.
            **sampling: as for `generate`.
        """
        return self.generate(TextGenerationRequest(messages=messages), **sampling)[0]

    def cancel(self, request_id: RequestID) -> None:
        """Ends a request; whoever waits for it gets what it produced so far, with status `CANCELLED`."""
        with self._lock:
            request = self._requests.get(request_id)
            if request is not None and not request.is_done:
                request.context.finish(GenerationStatus.CANCELLED)
                rest = self._streams[request_id].finish() if request_id in self._streams else ""
                self._deliver(
                    TextGenerationOutput(request_id=request_id, text=rest, final_status=GenerationStatus.CANCELLED)
                )

    def release(self, request_id: RequestID) -> None:
        """Gives back the request's pages and forgets its text. Does nothing for one that is released already."""
        with self._lock:
            self.scheduler.remove(request_id)
            self.model.kv_manager.release(request_id)
            self._streams.pop(request_id, None)

    def execute(self, inputs: TextGenerationInputs) -> dict[RequestID, TextGenerationOutput]:
        """Runs one batch.

        Args:
            inputs: contexts with their chunks set. One that is not claimed yet is, and feeds all its tokens.

        Returns:
            What each request produced; nothing for one whose prompt is not through yet.

        Raises:
            InsufficientPagesError: the pages do not suffice. Nothing was computed then.
        """
        pieces: dict[RequestID, list[TextGenerationOutput]] = {}
        batch = inputs.batch
        model_inputs: ModelInputs | None = None
        next_tokens = torch.empty(0)
        with self._lock:
            self._claim(batch)
            for remaining in range(inputs.num_steps, 0, -1):
                kv_cache_inputs = self.model.kv_manager.fetch(batch, remaining)
                if model_inputs is None:
                    model_inputs = self.model.prepare_initial_token_inputs(batch, kv_cache_inputs)
                else:
                    model_inputs.update(kv_cache_inputs=kv_cache_inputs)
                    model_inputs = self.model.prepare_next_token_inputs(next_tokens, model_inputs)
                model_outputs = self.model.execute(model_inputs)
                next_tokens = self._next_tokens(batch, model_outputs)
                logged = self._log_probabilities(batch, model_inputs, model_outputs, next_tokens)
                if not all(context.samples for context in batch):
                    model_inputs = None
                for output in self._advance(batch, next_tokens.tolist(), logged):
                    pieces.setdefault(output.request_id, []).append(output)
                self.model.kv_manager.step(batch)
                going_on = [context for context in batch if not context.status.is_done]
                if len(going_on) < len(batch):
                    model_inputs, batch = None, going_on
                if remaining == 1 or not batch:
                    break
                for context in batch:
                    context.set_chunk(context.num_pending)
        return {request_id: TextGenerationOutput.joined(of_one) for request_id, of_one in pieces.items()}

    def _claim(self, batch: Sequence[TextContext]) -> None:
        """Claims requests that did not come through the scheduler."""
        for context in batch:
            if not self.model.kv_manager.contains(context.request_id):
                self.model.kv_manager.external_claim(context)
                context.set_chunk(context.num_pending)

    def _next_tokens(self, batch: Sequence[TextContext], model_outputs: ModelOutputs) -> Tensor:
        """Samples for the requests whose chunk reached their end; the others' next token is known already."""
        logits = model_outputs.next_token_logits
        assert logits is not None
        rows = [i for i, context in enumerate(batch) if context.samples]
        if len(rows) == len(batch):
            return sample(logits, batch)
        known = [0 if c.samples else c.tokens[c.cache_length + c.active_length] for c in batch]
        next_tokens = torch.tensor(known, device=logits.device)
        if rows:
            next_tokens[rows] = sample(logits[rows], [batch[i] for i in rows])
        return next_tokens

    def _log_probabilities(
        self, batch: Sequence[TextContext], inputs: ModelInputs, outputs: ModelOutputs, next_tokens: Tensor
    ) -> Sequence[LogProbabilities | None]:
        top_n = [
            context.sampling_params.log_probabilities if context.samples or context.sampling_params.echo else 0
            for context in batch
        ]
        if not any(top_n):
            return [None] * len(batch)
        echo = [context.sampling_params.echo and context.num_generated == 0 for context in batch]
        return self.model.compute_log_probabilities(self.model.session, inputs, outputs, next_tokens, top_n, echo)

    def _advance(
        self, batch: Sequence[TextContext], next_tokens: Sequence[int], logged: Sequence[LogProbabilities | None]
    ) -> Iterator[TextGenerationOutput]:
        for context, token, entry in zip(batch, next_tokens, logged, strict=True):
            if not context.samples:
                context.advance(None)
                if entry is not None:
                    context.prompt_log_probabilities = context.prompt_log_probabilities.followed_by(entry)
                continue
            first = context.num_generated == 0
            context.advance(token)
            output = self._output(context, token)
            if entry is not None:
                whole = context.prompt_log_probabilities.followed_by(entry) if first else entry
                output = replace(output, log_probabilities=[whole])
            yield output

    def _output(self, context: TextContext, token: int) -> TextGenerationOutput:
        stream = self._streams.get(context.request_id)
        if stream is None:
            stream = self._streams[context.request_id] = TextStream(
                self._tokenizer.decode,
                prompt_tokens=context.tokens[: context.prompt_length],
                stop=context.sampling_params.stop,
                min_new_tokens=context.sampling_params.min_new_tokens,
            )
        ended = context.status is GenerationStatus.END_OF_SEQUENCE
        text = "" if ended else stream.push(token)
        if stream.stopped:
            context.finish(GenerationStatus.END_OF_SEQUENCE)
        if context.status.is_done:
            text += stream.finish()
        return TextGenerationOutput(
            request_id=context.request_id, text=text, tokens=[token], final_status=context.status
        )

    def _with_settings(
        self, requests: Sequence[TextGenerationRequest], sampling: dict[str, Any]
    ) -> list[TextGenerationRequest]:
        if not sampling:
            return list(requests)
        return [
            replace(request, sampling_params=(request.sampling_params or self.sampling_params).updated(**sampling))
            for request in requests
        ]

    def _run(self, requests: Sequence[TextGenerationRequest]) -> Generator[list[TextGenerationOutput]]:
        """Adds requests and yields what they produce, until all are done; releases them however it ends."""
        mine = [_Request(self._tokenizer.new_context(request)) for request in requests]
        try:
            with self._lock:
                for request in mine:
                    self._add(request)
            while not all(request.is_done and not request.outputs for request in mine):
                with self._lock:
                    if not any(request.outputs or request.error for request in mine):
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
            for request in mine:
                self._forget(request)

    def _add(self, request: _Request) -> None:
        request_id = request.context.request_id
        if request_id in self._requests:
            raise InvalidRequestError("a request with this id is running already", found=request_id)
        self.scheduler.add(request.context)
        self._requests[request_id] = request

    def _forget(self, request: _Request) -> None:
        with self._lock:
            if self._requests.get(request.context.request_id) is request:
                del self._requests[request.context.request_id]
                self.release(request.context.request_id)

    def _step(self) -> None:
        """Runs the scheduler's next step and hands out what it produced, or why it failed."""
        inputs = self.scheduler.schedule()
        if not inputs.batches:
            raise InsufficientPagesError(
                "no request can begin, because requests outside the scheduler hold the KV cache's pages",
                cure="Release what was given to `execute` directly.",
            )
        try:
            for output in self.execute(inputs).values():
                self._deliver(output)
        except Exception as error:  # whatever a model raises belongs to those who wait for this batch
            for context in inputs.batch:
                request = self._requests[context.request_id]
                request.error = error
                request.is_done = True
                self.release(context.request_id)

    def _deliver(self, output: TextGenerationOutput) -> None:
        request = self._requests[output.request_id]
        request.outputs.append(output)
        if output.is_done:
            request.is_done = True
            self.release(output.request_id)
