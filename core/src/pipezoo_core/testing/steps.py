"""Feeds prompts to a model without a pipeline, in the steps that a check wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipezoo_core.context import TextContext
from pipezoo_core.interfaces import PipelineModel
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.scheduling import hold_adapter
from pipezoo_core.testing.failures import ConformanceError

__all__ = ["inputs_of_prompts", "logits_of", "logits_of_several_steps"]

_MAX_LENGTH = 10**6


def logits_of(
    model: PipelineModel[Any],
    prompts: Sequence[list[int]],
    chunk: int | None = None,
    loras: Sequence[str | None] | None = None,
) -> list[Tensor]:
    """Feeds prompts as one batch, and returns the logits of all their tokens, each [S, V].

    Args:
        model: loaded with `ReturnLogits.ALL`.
        prompts: tokens.
        chunk: how many of each go into a step; None for all.
        loras: for each prompt the LoRA adapter that it uses.
    """
    names = loras or [None] * len(prompts)
    contexts = [_context(number, *both, 1) for number, both in enumerate(zip(prompts, names, strict=True))]
    rows: dict[str, list[Tensor]] = {context.request_id: [] for context in contexts}
    for context in contexts:
        hold_adapter(model.lora_manager, context)
        if model.lora_manager is not None:
            assert model.lora_manager.claim(context)
        model.kv_manager.external_claim(context)
        assert context.cache_length == 0, "the prefix cache was not empty"
    while batch := [context for context in contexts if not context.status.is_done]:
        for context in batch:
            context.set_chunk(min(chunk or context.num_pending, context.num_pending))
        for context in batch:
            _reserve(model, context)
        outputs = model.execute(model.prepare_initial_token_inputs(batch, model.kv_manager.fetch(batch)))
        assert outputs.logit_offsets is not None
        offsets = outputs.logit_offsets.tolist()
        for number, context in enumerate(batch):
            rows[context.request_id].append(outputs.logits[offsets[number] : offsets[number + 1]].clone())
            context.advance(0 if context.samples else None)
        model.kv_manager.step(batch)
        model.kv_manager.check_integrity()
    _release(model, contexts)
    return [torch.cat(of_one) for of_one in rows.values()]


def logits_of_several_steps(model: PipelineModel[Any], prompts: Sequence[list[int]], num_steps: int) -> list[Tensor]:
    """Feeds prompts whole, then each most likely token by `prepare_next_token_inputs`.

    Returns:
        For each prompt the logits [num_steps + 1, V] of its last token and those that follow, which are in the order in
        which they were generated the most likely ones.
    """
    contexts = [_context(number, prompt, None, num_steps + 2) for number, prompt in enumerate(prompts)]
    for context in contexts:
        model.kv_manager.external_claim(context)
        context.set_chunk(context.num_pending)
        _reserve(model, context, num_steps + 1)
    inputs: Any = model.prepare_initial_token_inputs(contexts, model.kv_manager.fetch(contexts, num_steps + 1))
    steps: list[Tensor] = []
    for number in range(num_steps + 1):
        logits = model.execute(inputs).next_token_logits
        assert logits is not None
        steps.append(logits.clone())
        tokens = logits.argmax(-1)
        for context, token in zip(contexts, tokens.tolist(), strict=True):
            context.advance(token)
            if number < num_steps:
                context.set_chunk(1)
        model.kv_manager.step(contexts)
        if number < num_steps:
            inputs.update(kv_cache_inputs=model.kv_manager.fetch(contexts))
            inputs = model.prepare_next_token_inputs(tokens, inputs)
    _release(model, contexts)
    return list(torch.stack(steps, dim=1))


@contextmanager
def inputs_of_prompts(model: PipelineModel[Any], prompts: Sequence[list[int]]) -> Iterator[Any]:
    """Yields the inputs of a step that feeds prompts whole, as a batch. They have pages while the context lasts."""
    contexts = [_context(number, prompt, None, 1) for number, prompt in enumerate(prompts)]
    for context in contexts:
        model.kv_manager.external_claim(context)
        context.set_chunk(context.num_pending)
        _reserve(model, context)
    yield model.prepare_initial_token_inputs(contexts, model.kv_manager.fetch(contexts))
    _release(model, contexts)


def _context(number: int, prompt: list[int], adapter: str | None, max_new_tokens: int) -> TextContext:
    return TextContext(
        request_id=str(number),
        prompt_tokens=prompt,
        max_length=_MAX_LENGTH,
        sampling_params=SamplingParams(max_new_tokens=max_new_tokens),
        lora=adapter,
    )


def _reserve(model: PipelineModel[Any], context: TextContext, num_steps: int = 1) -> None:
    if not model.kv_manager.maybe_reserve(context, num_steps):
        raise ConformanceError(
            "the tiny cache has no room for the prompts",
            found=f"{model.kv_manager.total_num_pages} pages",
            cure="Give the config fewer layers, or fewer and smaller heads.",
        )


def _release(model: PipelineModel[Any], contexts: Sequence[TextContext]) -> None:
    for context in contexts:
        model.kv_manager.release(context.request_id)
        if model.lora_manager is not None:
            model.lora_manager.release(context.request_id)
    model.kv_manager.check_integrity()
    model.kv_manager.reset_prefix_cache()
    assert model.kv_manager.num_free_pages == model.kv_manager.total_num_pages
