"""Text generation over `execute`: prompts in, finished or streamed outputs out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from pipezoo_core.config import PipelineConfig
from pipezoo_core.context import TextContext, TextGenerationInputs
from pipezoo_core.errors import InvalidRequestError
from pipezoo_core.interfaces.answers import Answers
from pipezoo_core.kv_cache import PagedKVCacheManager
from pipezoo_core.request import (
    Prompt,
    RequestID,
    TextGenerationOutput,
    TextGenerationRequest,
)

if TYPE_CHECKING:
    from pipezoo_core.interfaces.tokenizer import PipelineTokenizer

__all__ = ["GenerateMixin", "as_requests", "checked", "is_batch", "new_contexts"]

ContextT_co = TypeVar("ContextT_co", bound=TextContext, covariant=True)
RequestT_co = TypeVar("RequestT_co", bound=TextGenerationRequest, covariant=True)


@runtime_checkable
class GenerateMixin(Protocol[ContextT_co, RequestT_co]):
    """A pipeline that generates text.

    A class that brings `execute`, `release` and the three properties gets a working `generate` and `generate_async`:
    all prompts go through `execute` as one batch, one token per call, until the last one is done. However they
    end, by the last token, an exception, or a caller who stops listening, every request is released.
    """

    @property
    def kv_managers(self) -> list[PagedKVCacheManager]:
        """The KV cache managers, one per replica; none for a model without a cache."""
        ...

    @property
    def pipeline_config(self) -> PipelineConfig:
        """How the pipeline runs."""
        ...

    @property
    def tokenizer(self) -> PipelineTokenizer[ContextT_co, Any, Any]:
        """Turns requests into contexts."""
        ...

    def execute(self, inputs: TextGenerationInputs) -> dict[RequestID, TextGenerationOutput]:
        """Runs one batch per replica for `num_steps` tokens and returns what each request produced in it.

        A request that fails by itself ends as `ERROR`, and its output has the error; the others go on.

        Raises:
            InvalidRequestError: there are more batches than replicas, or a request names an adapter that is not loaded.
            InsufficientPagesError: the pages of the KV cache do not suffice.
            AdapterSlotsError: the batch has more adapters than there are slots.
            RankLostError: another device's process is gone.
        """
        ...

    def release(self, request_id: RequestID) -> None:
        """Gives back all that a request holds. Does nothing for one that is released already.

        Raises nothing: `generate` releases its requests one after another, those after an error would never be.
        """
        ...

    def generate(self, prompts: Any) -> list[TextGenerationOutput]:
        """Answers prompts, in their order.

        A single prompt that fails raises its error. In a list each one has its output: one that failed has an `error`,
        and the others are answered.

        Args:
            prompts: a string, a chat (a list of messages), a `TextGenerationRequest`, or a list of these.

        Raises:
            InvalidRequestError: a prompt is of an unknown kind, or two requests have the same id. No request was begun
                then.
            PipezooError: what `execute` raises, and for a prompt by itself what `tokenizer.new_context` does.
        """
        answers = Answers(as_requests(prompts))
        return answers.joined(_run(self, answers, in_batch=is_batch(prompts)))

    async def generate_async(self, prompts: Any) -> AsyncIterator[list[TextGenerationOutput]]:
        """Answers prompts and yields, step by step, what is new of those that went on.

        Args:
            prompts: as for `generate`.

        Raises:
            PipezooError: what `generate` raises.
        """
        steps = _run(self, Answers(as_requests(prompts)), in_batch=is_batch(prompts))
        try:
            for outputs in steps:
                yield outputs
                await asyncio.sleep(0)
        finally:
            steps.close()


def _run(
    pipeline: GenerateMixin[Any, Any], answers: Answers, *, in_batch: bool
) -> Generator[list[TextGenerationOutput]]:
    contexts, failed = new_contexts(pipeline.tokenizer, answers)
    try:
        if failed:
            yield checked(answers.named(failed), in_batch=in_batch)
        while batch := {c.request_id: c for c in contexts if not c.status.is_done}:
            for context in batch.values():
                context.set_chunk(context.num_pending)
            outputs = pipeline.execute(TextGenerationInputs([batch]))
            yield checked(answers.named(outputs.values()), in_batch=in_batch)
    finally:
        for context in contexts:
            pipeline.release(context.request_id)


def as_requests(prompts: Any) -> list[TextGenerationRequest]:
    """Turns what a caller may pass to `generate` into requests.

    Raises:
        InvalidRequestError: it is none of the kinds `generate` takes, or two requests have the same id.
    """
    requests = [_as_request(prompt) for prompt in (prompts if is_batch(prompts) else [prompts])]
    ids = [request.request_id for request in requests]
    if len(set(ids)) < len(ids):
        raise InvalidRequestError("two requests have the same id", found=ids)
    return requests


def is_batch(prompts: Any) -> bool:
    """Whether a caller passed a list of prompts to `generate`, and not a prompt by itself."""
    return isinstance(prompts, Sequence) and not isinstance(prompts, str) and not _is_chat(prompts)


def new_contexts(
    tokenizer: PipelineTokenizer[TextContext, Any, Any], answers: Answers
) -> tuple[list[TextContext], list[TextGenerationOutput]]:
    """Returns the contexts of those requests that can become one, and an output with the error for each other.

    A prompt is tokenized once for all its answers, and its grammar tried once.
    """
    contexts: list[TextContext] = []
    failed: list[TextGenerationOutput] = []
    for first, *others in answers.by_prompt:
        try:
            context = tokenizer.new_context(first)
        except Exception as error:  # a tokenizer is the model's own and may fail in any way
            failed += [TextGenerationOutput.failed(request.request_id, error) for request in (first, *others)]
            continue
        context.arrival_time = answers.arrival_time
        contexts += [context, *map(context.another, others)]
    return contexts, failed


def checked(outputs: list[TextGenerationOutput], *, in_batch: bool) -> list[TextGenerationOutput]:
    """Returns outputs as they are, if the caller shall see them.

    Raises:
        Exception: what a prompt by itself failed of.
        BaseException: one that is no Exception, such as KeyboardInterrupt.
    """
    for output in outputs:
        if output.error is not None and not (in_batch and isinstance(output.error, Exception)):
            raise output.error
    return outputs


def _as_request(prompt: Prompt) -> TextGenerationRequest:
    if isinstance(prompt, TextGenerationRequest):
        return prompt
    if isinstance(prompt, str):
        return TextGenerationRequest(prompt=prompt)
    if _is_chat(prompt):
        return TextGenerationRequest(messages=prompt)
    raise InvalidRequestError(
        "a prompt is of an unknown kind",
        found=type(prompt).__name__,
        allowed="a string, a list of chat messages, or a TextGenerationRequest",
        cure="Give token ids as TextGenerationRequest(prompt=[…]).",
    )


def _is_chat(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(part, Mapping) for part in prompt)
