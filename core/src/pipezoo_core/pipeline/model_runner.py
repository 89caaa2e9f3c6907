"""One batch through the model: pages, inputs, logits, next tokens, text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from pipezoo_core.context import TextContext
from pipezoo_core.errors import (
    AdapterSlotsError,
    InsufficientPagesError,
    InvalidRequestError,
    NonFiniteLogitsError,
)
from pipezoo_core.interfaces import ModelInputs, ModelOutputs, PipelineModel
from pipezoo_core.pipeline.draft_rows import DraftRows
from pipezoo_core.pipeline.sampler import NO_TOKEN, sample
from pipezoo_core.pipeline.token_masks import TokenMasker, TokenMasks
from pipezoo_core.request import (
    GenerationStatus,
    LogProbabilities,
    RequestID,
    TextGenerationOutput,
)
from pipezoo_core.scheduling import hold_adapter
from pipezoo_core.structured_output import TokenMatcher
from pipezoo_core.tokenizer import TextStream, TextTokenizer

__all__ = ["ModelRunner", "Outcome"]


Outcome: TypeAlias = dict[RequestID, TextGenerationOutput] | BaseException
"""What came of a replica's batch: what each request produced, or why the batch failed."""


class ModelRunner:
    """Owns the text of running requests, as far as it is not certain yet. Knows nothing of queues and callers.

    Args:
        model: one replica, with its KV cache.
        tokenizer: turns tokens into text.
    """

    def __init__(self, model: PipelineModel[TextContext], tokenizer: TextTokenizer) -> None:
        self._model = model
        self._manager = model.kv_manager
        self._lora_manager = model.lora_manager
        self._tokenizer = tokenizer
        self._streams: dict[RequestID, TextStream] = {}
        self._masker = TokenMasker()

    def release(self, request_id: RequestID) -> None:
        """Gives back the request's pages and adapter, and forgets its text.

        Does nothing for one that is released already.
        """
        self._manager.release(request_id)
        if self._lora_manager is not None:
            self._lora_manager.release(request_id)
        self._streams.pop(request_id, None)

    def remaining_text(self, request_id: RequestID) -> str:
        """Returns the text that was held back, because more tokens might have changed it."""
        return self._streams[request_id].finish() if request_id in self._streams else ""

    def step(self, batch: Sequence[TextContext]) -> Outcome:
        """Feeds the chunks of a batch that the scheduler has chosen, and returns what came of it."""
        try:
            inputs = self._model.prepare_initial_token_inputs(batch, self._manager.fetch(batch))
            _, outputs = self._compute(batch, inputs)
            return _joined(outputs)
        except BaseException as error:
            return error

    def execute(self, batch: Sequence[TextContext], num_steps: int) -> Outcome:
        """Runs several steps of requests that need not have come through the scheduler.

        The contract is that of `TextGenerationPipeline.execute`.
        """
        try:
            return self._execute(batch, num_steps)
        except BaseException as error:
            return error

    def _execute(self, batch: Sequence[TextContext], num_steps: int) -> dict[RequestID, TextGenerationOutput]:
        outputs: list[TextGenerationOutput] = []
        inputs: ModelInputs | None = None
        next_tokens = torch.empty(0, dtype=torch.int64, device="cpu")
        self._claim(batch)
        for remaining in range(num_steps, 0, -1):
            self._reserve(batch, remaining)
            kv_cache_inputs = self._manager.fetch(batch, remaining)
            if inputs is None:
                inputs = self._model.prepare_initial_token_inputs(batch, kv_cache_inputs)
            else:
                inputs.update(kv_cache_inputs=kv_cache_inputs)
                inputs = self._model.prepare_next_token_inputs(next_tokens, inputs)
            is_same_step = all(context.samples and not context.draft for context in batch)  # of one new token each
            next_tokens, found = self._compute(batch, inputs)
            outputs += found
            going_on = [context for context in batch if not context.status.is_done]
            if not is_same_step or len(going_on) < len(batch):
                inputs, batch = None, going_on
            if remaining == 1 or not batch:
                break
            for context in batch:
                context.set_chunk(context.num_pending)
        return _joined(outputs)

    def _claim(self, batch: Sequence[TextContext]) -> None:
        """Claims requests that did not come through the scheduler."""
        for context in batch:
            if not self._manager.contains(context.request_id):
                self._claim_adapter(context)
                self._manager.external_claim(context)
                context.begin()
                context.set_chunk(context.num_pending)

    def _claim_adapter(self, context: TextContext) -> None:
        hold_adapter(self._lora_manager, context)
        if self._lora_manager is not None and not self._lora_manager.claim(context):
            raise AdapterSlotsError(
                f"the adapter {context.lora!r} finds no slot, because running requests use all of them",
                found=f"{self._lora_manager.max_num_loras} slots",
                cure="Run fewer adapters at once, or load the model with a greater max_num_loras.",
            )

    def _reserve(self, batch: Sequence[TextContext], num_steps: int) -> None:
        for context in batch:
            if not self._manager.maybe_reserve(context, num_steps):
                raise InsufficientPagesError(
                    "the KV cache has no room for this step",
                    found=self._manager.free_room,
                    cure="Run fewer requests at once, or load with more kv_cache_memory where pages are missing, and a "
                    "greater max_batch_size where slots are.",
                )

    def _compute(self, batch: Sequence[TextContext], inputs: ModelInputs) -> tuple[Tensor, list[TextGenerationOutput]]:
        """Runs the model once and advances the contexts.

        Returns:
            The tokens that follow the chunks, int64 [B], and what the requests whose chunk reached their end produced.
        """
        drafted = [context for context in batch if context.draft]
        masks = self._start_masks(batch)
        try:
            model_outputs = self._model.execute(inputs)
        finally:
            if masks is not None:
                wait([masks])  # it reads the contexts, which change as soon as a step has failed
        rows = DraftRows(model_outputs, batch) if drafted else None
        if rows is not None:
            del model_outputs  # its copy of a row per request makes room for another
            model_outputs = rows.first()
        next_tokens, outputs = self._choose(batch, inputs, model_outputs, masks)
        del model_outputs
        if rows is not None:
            outputs += self._verified(batch, inputs, rows)
        # What a failed request wrote may be unsound: nobody shall find it in the prefix cache.
        self._manager.step([context for context in batch if context.error is None])
        for context in drafted:
            self._manager.shrink(context)
        return next_tokens, outputs

    def _verified(
        self, batch: Sequence[TextContext], inputs: ModelInputs, rows: DraftRows
    ) -> Iterator[TextGenerationOutput]:
        """Goes on, token by token, with the requests whose draft came true so far, as with a step of theirs."""
        while followed := [context for context in batch if context.is_followed]:
            _, found = self._choose(followed, inputs, rows.next(followed), self._start_masks(followed))
            yield from found

    def _start_masks(self, contexts: Sequence[TextContext]) -> Future[TokenMasks] | None:
        has_grammar = any(context.matcher is not None for context in contexts)
        return self._masker.start(contexts) if has_grammar else None

    def _choose(
        self,
        contexts: Sequence[TextContext],
        inputs: ModelInputs,
        model_outputs: ModelOutputs,
        masks: Future[TokenMasks] | None,
    ) -> tuple[Tensor, list[TextGenerationOutput]]:
        """Chooses the next tokens, int64 [len(contexts)], and advances the contexts."""
        next_tokens = self._next_tokens(contexts, model_outputs, masks.result() if masks else None)
        logged = self._log_probabilities(contexts, inputs, model_outputs, next_tokens)
        return next_tokens, list(self._advance(contexts, next_tokens.tolist(), logged))

    def _next_tokens(
        self, batch: Sequence[TextContext], model_outputs: ModelOutputs, masks: TokenMasks | None
    ) -> Tensor:
        """Samples for the requests whose chunk reached their end; the others' next token is known already.

        `NO_TOKEN` stays where logits are not finite: what such a chunk wrote is of no use to the next one.
        """
        logits = model_outputs.next_token_logits
        assert logits is not None
        next_tokens = sample(logits, batch, masks)
        if all(context.samples for context in batch):
            return next_tokens
        known = [NO_TOKEN if c.samples else c.tokens[c.cache_length + c.active_length] for c in batch]
        known_B = torch.tensor(known, dtype=torch.int64, device=logits.device)
        return torch.where((known_B == NO_TOKEN) | (next_tokens == NO_TOKEN), next_tokens, known_B)

    def _log_probabilities(
        self, batch: Sequence[TextContext], inputs: ModelInputs, outputs: ModelOutputs, next_tokens: Tensor
    ) -> Sequence[LogProbabilities | None]:
        wanted = [context.sampling_params.log_probabilities for context in batch]
        if all(number is None for number in wanted):
            return [None] * len(batch)
        given = [context.samples or context.sampling_params.echo for context in batch]
        top_n = [max(1, n) if n is not None and is_given else 0 for n, is_given in zip(wanted, given, strict=True)]
        echo = [context.sampling_params.echo and context.num_generated == 0 for context in batch]
        existing = next_tokens.clamp(min=0)
        entries = self._model.compute_log_probabilities(self._model.session, inputs, outputs, existing, top_n, echo)
        return [entry and self._completed(entry, n) for entry, n in zip(entries, wanted, strict=True)]

    def _completed(self, entry: LogProbabilities, top_n: int | None) -> LogProbabilities:
        """Returns an entry with its tokens' texts; where no others are asked for, with the tokens themselves alone."""
        tops = entry.top_log_probabilities if top_n else [_last(top) for top in entry.top_log_probabilities]
        texts = {token: self._tokenizer.text_of(token) for top in tops for token in top}
        return replace(entry, top_log_probabilities=tops, token_texts=texts)

    def _advance(
        self, batch: Sequence[TextContext], next_tokens: Sequence[int], logged: Sequence[LogProbabilities | None]
    ) -> Iterator[TextGenerationOutput]:
        for context, token, entry in zip(batch, next_tokens, logged, strict=True):
            if context.samples and context.matcher is not None and context.matcher.is_done:  # the token fits nothing
                context.advance(None)
                yield self._end(context, _final_status(context.matcher), context.matcher.error)
                continue
            if token == NO_TOKEN:
                error = context.error or _non_finite(context)
                context.advance(None)
                yield self._end(context, GenerationStatus.ERROR, error)
                continue
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

    def _end(self, context: TextContext, status: GenerationStatus, error: BaseException | None) -> TextGenerationOutput:
        """Ends a request without another token: its grammar allows none, or its logits name none."""
        context.finish(status, error)
        return context.output(text=self.remaining_text(context.request_id))

    def _output(self, context: TextContext, token: int) -> TextGenerationOutput:
        stream = self._streams.get(context.request_id)
        if stream is None:
            stream = self._streams[context.request_id] = self._new_stream(context)
        ended = context.status is GenerationStatus.END_OF_SEQUENCE
        try:
            text = "" if ended and not context.sampling_params.include_stop_str_in_output else stream.push(token)
        except InvalidRequestError as error:  # the model's tokenizer cannot decode it
            context.finish(GenerationStatus.ERROR, error)
            return context.output(tokens=[token])
        if context.matcher is not None and not ended and stream.stop_text is None:
            context.matcher.consume(token)
            if context.matcher.is_done:
                context.finish(_final_status(context.matcher), context.matcher.error)
        if context.status.is_done:
            text += stream.finish()
        if stream.stop_text is not None:
            context.finish(GenerationStatus.END_OF_SEQUENCE)
            context.stop_reason = stream.stop_text
        elif context.stop_reason is not None and context.sampling_params.include_stop_str_in_output:
            text += self._left_out(context).get(token, "")
        return context.output(text=text, tokens=[token])

    def _new_stream(self, context: TextContext) -> TextStream:
        params = context.sampling_params
        return TextStream(
            partial(self._tokenizer.decode, skip_special_tokens=params.skip_special_tokens),
            prompt_tokens=context.tokens[: context.prompt_length],
            stop=params.stop,
            min_new_tokens=params.min_new_tokens,
            special_texts=self._left_out(context),
            include_stop=params.include_stop_str_in_output,
        )

    def _left_out(self, context: TextContext) -> Mapping[int, str]:
        """Returns the texts of the tokens that the answer's text leaves out."""
        return self._tokenizer.special_texts if context.sampling_params.skip_special_tokens else {}


def _joined(outputs: Iterable[TextGenerationOutput]) -> dict[RequestID, TextGenerationOutput]:
    pieces: dict[RequestID, list[TextGenerationOutput]] = {}
    for output in outputs:
        pieces.setdefault(output.request_id, []).append(output)
    return {request_id: TextGenerationOutput.joined(of_one) for request_id, of_one in pieces.items()}


def _last(top: dict[int, float]) -> dict[int, float]:
    return dict([next(reversed(top.items()))])


def _non_finite(context: TextContext) -> NonFiniteLogitsError:
    fed = context.cache_length + context.active_length
    return NonFiniteLogitsError(
        "the model's logits for the next token are NaN or infinite",
        found=f"after {min(fed, context.prompt_length)} prompt tokens and {context.num_generated} new ones",
        cure="Load with dtype bfloat16 or float32, which overflow later than float16, and check the weights.",
    )


def _final_status(matcher: TokenMatcher) -> GenerationStatus:
    return GenerationStatus.END_OF_SEQUENCE if matcher.is_complete else GenerationStatus.ERROR
