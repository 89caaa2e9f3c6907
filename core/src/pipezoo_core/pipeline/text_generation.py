"""The pipeline: requests go in, the scheduler's steps go through the model, text comes out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, Unpack
from weakref import ref

from pipezoo_core.config import PipelineConfig, SpeculativeName
from pipezoo_core.context import TextContext, TextGenerationInputs
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.interfaces import GenerateMixin, PipelineModel
from pipezoo_core.interfaces.answers import Answers
from pipezoo_core.interfaces.generate import as_requests, checked, is_batch, new_contexts
from pipezoo_core.kv_cache import PagedKVCacheManager
from pipezoo_core.lora import LoRAManager
from pipezoo_core.memory import MemoryPlan
from pipezoo_core.pipeline.adapters import add_to_all, managers_with_room, unload_from_all
from pipezoo_core.pipeline.answer_stream import AnswerStream
from pipezoo_core.pipeline.call_settings import settings_of_call, with_settings
from pipezoo_core.pipeline.engine import Engine, closed_error
from pipezoo_core.pipeline.model_runner import ModelRunner
from pipezoo_core.pipeline.progress import with_progress
from pipezoo_core.pipeline.request_driver import RequestDriver
from pipezoo_core.pipeline.step_thread import StepThread
from pipezoo_core.request import (
    ChatMessage,
    Prompt,
    RequestID,
    TextGenerationOutput,
    TextGenerationRequest,
)
from pipezoo_core.sampling_options import SamplingOptions
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.scheduling import Scheduler
from pipezoo_core.tokenizer import TextTokenizer

__all__ = ["TextGenerationPipeline"]

_NUM_TOKENIZING = 4  # threads, so that a long prompt does not hold up a short one


class TextGenerationPipeline(GenerateMixin[TextContext, TextGenerationRequest]):
    """Generates text with one model, or several replicas of it.

    Calls from several threads or tasks share the model's steps: whoever waits for an output runs the next step, for
    everybody's requests. `execute` is the step alone, for those who schedule themselves.

    Sampling settings come from the model's generation config, from a request's own `sampling_params`, from those of a
    call for requests without their own, and from the call's keywords, which win over all.

    It may be used in a `with` statement, which closes it.

    Args:
        pipeline_config: how to run it.
        models: the replicas, at least one, each with its own weights and KV cache.
        tokenizer: holds the pipeline's default sampling settings.
        memory_plan: what the memory is used for.

    Attributes:
        models: the replicas. An adapter that is loaded later is loaded into the `lora_manager` of each.
        memory_plan: what the memory is used for.
    """

    def __init__(
        self,
        pipeline_config: PipelineConfig,
        models: Sequence[PipelineModel[TextContext]],
        tokenizer: TextTokenizer,
        memory_plan: MemoryPlan,
    ) -> None:
        self._pipeline_config = pipeline_config
        self._tokenizer: TextTokenizer | None = tokenizer
        self.models = list(models)
        self.memory_plan = memory_plan
        scheduler = Scheduler(
            self.kv_managers,
            [model.lora_manager for model in models],
            max_batch_size=pipeline_config.max_batch_size,
            max_batch_tokens=pipeline_config.max_batch_tokens,
            with_drafts=pipeline_config.speculative is SpeculativeName.lookup,
        )
        self._engine = Engine(scheduler, [ModelRunner(model, tokenizer) for model in models])
        self._step_thread = StepThread(self._engine)
        self._prompt_threads = ThreadPoolExecutor(_NUM_TOKENIZING, thread_name_prefix="pipezoo-prompts")
        self._several: set[ref[Answers]] = set()

    def __repr__(self) -> str:
        config = self._pipeline_config
        devices = ", ".join(dict.fromkeys(str(device) for model in self.models for device in model.devices))
        state = "closed" if self._engine.is_closed else f"on {devices}"
        return (
            f"<{type(self).__name__} {config.model_path!r} {state}, {config.encoding}, "
            f"KV cache of {self.memory_plan.num_cache_tokens} tokens>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def model(self) -> PipelineModel[TextContext]:
        """The first replica; the others are in `models`."""
        return self._open_models()[0]

    @property
    def scheduler(self) -> Scheduler:
        """Assigns requests to replicas, and chooses each step's."""
        return self._engine.scheduler

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
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise closed_error()
        return tokenizer

    @property
    def sampling_params(self) -> SamplingParams:
        """The settings of requests that bring none: our defaults under the model's generation config."""
        return self.tokenizer.sampling_params

    @property
    def adapters(self) -> list[str]:
        """The names of the loaded LoRA adapters."""
        manager = self.model.lora_manager
        return [] if manager is None else manager.loras

    def load_adapter(self, path: str) -> None:
        """Loads a LoRA adapter, so that requests can name it.

        Args:
            path: a folder or a Hub id, or `name=` and one of these; without a name, this text is the name.

        Raises:
            InvalidSettingError: the name is taken, or the model was loaded without room for adapters.
            InvalidRequestError: this thread is in the middle of a step.
            PipezooError: what `LoRAManager.read_adapter` raises.
        """
        managers = self._lora_managers()
        adapters = [manager.read_adapter(path) for manager in managers]
        with self._engine.exclusive():  # no request begins to use it meanwhile
            add_to_all(managers, adapters)

    def unload_adapter(self, name: str) -> None:
        """Forgets a LoRA adapter.

        Raises:
            AdapterNotFoundError: there is none of this name.
            AdapterInUseError: a request that is not done uses it.
            InvalidSettingError: the model was loaded without room for adapters.
            InvalidRequestError: this thread is in the middle of a step.
        """
        managers = self._lora_managers()
        with self._engine.exclusive():  # no request begins to use it meanwhile
            unload_from_all(managers, name)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Mapping[str, Any] | None = None,
        *,
        lora: str | None = None,
        progress: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> list[TextGenerationOutput]:
        """Answers prompts, in their order.

        A single prompt that fails raises its error. In a list each one has its output: one that failed has the status
        `ERROR` and an `error`, and the others are answered.

        Args:
            prompts: a string (completed as it is), a chat (a list of messages), a `TextGenerationRequest`, or a list
                of these.
            sampling_params: settings of requests that bring none: complete ones, or a mapping of those that differ
                from the pipeline's.
            lora: name of the loaded adapter to answer with; None leaves it to the requests.
            progress: show a bar on standard error, if that is a terminal.
            **sampling: settings of `SamplingParams` that differ.

        Raises:
            InvalidSettingError: a sampling setting is unknown or out of range.
            InvalidRequestError: a prompt is of an unknown kind, or two requests have the same id. No request was begun
                then. Or this thread is in the middle of a step, by way of a logits processor, say.
            ClosedPipelineError: the pipeline is closed.
            InsufficientPagesError: no request can begin, because those that were given to `execute` hold the pages.
            ForkedProcessError: the model was loaded in another process, of which this is a forked child.

        These a single prompt raises, and in a list they are in its output:
            InvalidRequestError: it is empty or too long, has a token that is not in the vocabulary, or its id is that
                of another request that is not done.
            InsufficientPagesError: the KV cache is too small for it, even when it is alone there.
            AdapterNotFoundError: no adapter of this name is loaded.
            InvalidGrammarError: the grammar cannot be used, or the answer cannot follow it any further.
            UnsupportedTokenizerError: there is a grammar, and llguidance cannot read the model's tokenizer.
            MissingDependencyError: there is a grammar, and llguidance is not installed.
            LogitsProcessorError: one of its `logits_processors` failed.
            NonFiniteLogitsError: the model computed NaN or infinity for it.
            RankLostError: another device's process is gone.
            ClosedPipelineError: the pipeline was closed before it was begun.
            Exception: what the model fails of, for all requests of that step.
        """
        answers = self._answers(prompts, sampling_params, lora, sampling)
        steps = self._run(answers, in_batch=is_batch(prompts))
        return answers.joined(with_progress(steps, len(answers.requests)) if progress else steps)

    def generate_async(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Mapping[str, Any] | None = None,
        *,
        lora: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncGenerator[list[TextGenerationOutput]]:
        """Answers prompts and yields, step by step, what is new.

        The event loop goes on meanwhile: prompts are tokenized in threads, and steps run in one, the same one for all
        tasks. A task that waits asks for the next step if nobody else did, and looks for outputs after it; so no task
        waits for another's turn.

        Args:
            prompts: as for `generate`.
            sampling_params: as for `generate`.
            lora: as for `generate`.
            **sampling: as for `generate`.

        Raises:
            PipezooError: what `generate` raises; what is wrong with the settings at once, not when the first output is
                awaited.
        """
        answers = self._answers(prompts, sampling_params, lora, sampling)
        return self._run_async(answers, in_batch=is_batch(prompts))

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | Mapping[str, Any] | None = None,
        *,
        lora: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AnswerStream:
        """Answers one prompt and yields its text, piece by piece.

        Args:
            prompt: a string, a chat, or a `TextGenerationRequest`.
            sampling_params: as for `generate`.
            lora: as for `generate`.
            **sampling: as for `generate`.

        Returns:
            An iterator of text, whose `output` is the whole answer at the end.

        Raises:
            PipezooError: what `generate` raises; what is wrong with the prompt or the settings at once.
        """
        answers = self._answers([prompt], sampling_params, lora, sampling)
        if len(answers.requests) > 1:
            raise InvalidSettingError(
                "a stream has one answer", found=f"n={len(answers.requests)}", cure="Take generate or generate_async."
            )
        contexts, failed = new_contexts(self.tokenizer, answers)
        checked(failed, in_batch=False)
        return AnswerStream(answers.requests[0].request_id, self._engine.outputs_of(contexts))

    def chat(
        self,
        messages: Sequence[ChatMessage],
        sampling_params: SamplingParams | Mapping[str, Any] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        lora: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> TextGenerationOutput:
        """Answers a chat, `{"role": …, "content": …}` each, by the model's chat template.

        Args:
            messages: the chat so far; a request's `messages`.
            sampling_params: as for `generate`.
            tools: as in `TextGenerationRequest`.
            chat_template_kwargs: as in `TextGenerationRequest`.
            continue_final_message: as in `TextGenerationRequest`.
            lora: as for `generate`.
            **sampling: as for `generate`.

        Raises:
            PipezooError: what `generate` raises.
        """
        request = _chat_request(messages, tools, chat_template_kwargs, continue_final_message)
        return self.generate(request, sampling_params, lora=lora, **sampling)[0]

    async def chat_async(
        self,
        messages: Sequence[ChatMessage],
        sampling_params: SamplingParams | Mapping[str, Any] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        lora: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> TextGenerationOutput:
        """Answers a chat like `chat`, with the same arguments, and lets the event loop go on meanwhile."""
        request = _chat_request(messages, tools, chat_template_kwargs, continue_final_message)
        answers = self._answers(request, sampling_params, lora, sampling)
        steps = [outputs async for outputs in self._run_async(answers, in_batch=False)]
        return answers.joined(steps)[0]

    def driver(self) -> RequestDriver:
        """Returns what runs the steps of requests that come and go, in one loop: a server's."""
        return RequestDriver(self._engine, self.tokenizer)

    def cancel(self, request_id: RequestID) -> None:
        """Ends a request; whoever waits for it gets what it produced so far, with status `CANCELLED`.

        Does nothing for one that is not known, or when the pipeline is closed.
        """
        if not self._engine.is_closed:
            for own_id in self._ids_of(request_id):
                self._engine.cancel(own_id)

    def release(self, request_id: RequestID) -> None:
        """Gives back the request's pages and adapter, and forgets its text.

        Does nothing for one that is released already, or when the pipeline is closed.
        """
        if not self._engine.is_closed:
            for own_id in self._ids_of(request_id):
                self._engine.release(own_id)

    def close(self) -> None:
        """Ends all requests as cancelled, and gives back the memory of the model, its cache and its tokenizer.

        Calls that run get what their requests produced so far; one whose requests were not begun fails with a
        `ClosedPipelineError`, like later ones. Does nothing when the pipeline is closed already; one that was
        interrupted is completed by another one.

        Raises:
            InvalidRequestError: this thread is in the middle of a step, by way of a signal handler, say.
            ForkedProcessError: the model was loaded in another process.
        """
        if not self.models:
            return
        self._engine.close()
        self._step_thread.close()
        self._prompt_threads.shutdown(wait=False)
        self._tokenizer = None  # ends its processes, as soon as no prompt is made tokens of
        self.models.clear()  # last: it says that all is done

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
            InvalidRequestError: there are more batches than replicas, or a request's id is that of one that `generate`
                and the like have not done yet, or this thread is in the middle of a step.
            InsufficientPagesError: the pages do not suffice. Nothing was computed then in this replica.
            AdapterNotFoundError: a context that is not claimed yet names an adapter that is not loaded.
            AdapterSlotsError: there are fewer slots than adapters. Nothing was computed then in this replica.
            ForkedProcessError: the model was loaded in another process, of which this is a forked child.
        """
        return self._engine.execute(inputs)

    def _open_models(self) -> list[PipelineModel[TextContext]]:
        models = list(self.models)  # before it is checked: they are there until the pipeline is closed
        self._engine.check_open()
        return models

    def _lora_managers(self) -> list[LoRAManager]:
        return managers_with_room([model.lora_manager for model in self._open_models()])

    def _answers(
        self,
        prompts: object,
        sampling_params: SamplingParams | Mapping[str, Any] | None,
        lora: str | None,
        sampling: Mapping[str, Any],
    ) -> Answers:
        """Returns what is run for a call."""
        self._engine.check_open()
        of_call = settings_of_call(self.sampling_params, sampling_params)
        requests = with_settings(as_requests(prompts), of_call, sampling, lora=lora)
        answers = Answers(requests)
        if len(answers.requests) > len(requests):
            self._several.add(ref(answers, self._several.discard))
        return answers

    def _ids_of(self, request_id: Any) -> list[RequestID]:
        """Returns the ids of a request's answers, in every call that has a request with this id."""
        several = self._several.copy() if isinstance(request_id, str) else ()  # what is no id is refused
        calls = [answers for call in several if (answers := call()) is not None]
        return [request_id, *(own_id for answers in calls for own_id in answers.ids_of(request_id)[1:])]

    def _run(self, answers: Answers, *, in_batch: bool) -> Generator[list[TextGenerationOutput]]:
        contexts, failed = new_contexts(self.tokenizer, answers)
        if failed:
            yield checked(answers.named(failed), in_batch=in_batch)
        for outputs in self._engine.outputs_of(contexts):
            yield checked(answers.named(outputs), in_batch=in_batch)

    async def _run_async(self, answers: Answers, *, in_batch: bool) -> AsyncGenerator[list[TextGenerationOutput]]:
        self._engine.check_outside()
        contexts, failed = await asyncio.wrap_future(self._new_contexts_later(answers))
        call = self._engine.begin(contexts)
        try:
            if failed:
                yield checked(answers.named(failed), in_batch=in_batch)
            while not call.is_over:
                self._engine.check()  # a child that goes on with its parent's answers has none of its threads
                if outputs := call.take():
                    yield checked(answers.named(outputs), in_batch=in_batch)
                else:
                    await self._step_thread.advance(call)
        finally:
            call.close()
            await self._step_thread.settle()

    def _new_contexts_later(self, answers: Answers) -> Future[tuple[list[TextContext], list[TextGenerationOutput]]]:
        tokenizer = self.tokenizer
        try:
            return self._prompt_threads.submit(new_contexts, tokenizer, answers)
        except RuntimeError:  # the threads have ended
            self._engine.check_open()
            raise


def _chat_request(
    messages: Sequence[ChatMessage],
    tools: Sequence[Mapping[str, Any]] | None,
    chat_template_kwargs: Mapping[str, Any] | None,
    continue_final_message: bool,
) -> TextGenerationRequest:
    return TextGenerationRequest(
        messages=messages,
        tools=tools,
        chat_template_kwargs=chat_template_kwargs,
        continue_final_message=continue_final_message,
    )
