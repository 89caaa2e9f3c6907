"""Is it the same whatever happens to requests: preempted, stopped, after others that began alike?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch

from pipezoo_core.config import KVCacheConfig
from pipezoo_core.interfaces import KVCacheMixin
from pipezoo_core.pipeline import TextGenerationPipeline
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.testing.agreement import tolerance
from pipezoo_core.testing.claims import one_of_each_kind
from pipezoo_core.testing.failures import ConformanceError, NotCheckedError
from pipezoo_core.testing.plugin_under_test import PluginUnderTest
from pipezoo_core.testing.subject import Subject

__all__ = ["check_abort", "check_echo", "check_preemption", "check_prefix_hit"]

_PAGE_SIZE = 8
_NUM_TOKENS = 16
_CHUNK = 16


def check_preemption(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """Requests that had to give up their pages, and begin again, answer as if nothing had happened."""
    del plugin
    checked = 0
    for subject in one_of_each_kind(subjects):
        prompts = _prompts(subject)
        with subject.pipeline(kv_cache=_cache(2**23)) as llm:
            expected = _tokens(llm, prompts)
        small = {"kv_cache": _cache(_few_pages(subject)), "max_length": _longest(prompts), "max_batch_tokens": _CHUNK}
        with subject.pipeline(**small) as llm:
            found, count = _tokens(llm, prompts), llm.scheduler.num_preemptions
            _check_all_free(subject, llm)
        checked += count
        if found != expected:
            raise ConformanceError(
                f"config {subject.name!r}: after preemption, prompt {_first_other(found, expected)} has another answer",
                cure="A preempted request begins anew, with an empty cache. Most likely the plugin has a cache of its "
                "own, which still holds what was there before: what it knows of a request is in the KV cache alone.",
            )
    if not checked:
        raise NotCheckedError("the layers' windows leave so few pages to each request that none is preempted")


def check_prefix_hit(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """Requests that find the pages of others that began alike answer as those that do not."""
    del plugin
    checked = 0
    for subject in one_of_each_kind(subjects):
        prompts = _prompts(subject)
        with subject.pipeline(kv_cache=_cache(2**23).updated(enable_prefix_caching=False)) as llm:
            expected = [_tokens(llm, [prompt])[0] for prompt in prompts]
        with subject.pipeline(kv_cache=_cache(2**23)) as llm:
            found = [_tokens(llm, [prompt])[0] for prompt in [*prompts, *prompts[:3]]]
            hits = llm.kv_managers[0].metrics.prefix_hit_tokens
            checked += hits
            _check_all_free(subject, llm)
        expected += expected[:3]
        if found != expected:
            raise ConformanceError(
                f"config {subject.name!r}: with the pages of earlier requests, prompt "
                f"{_first_other(found, expected)} has another answer",
                cure="What was found is not fed again, so a request's first step does not begin at position 0. Most "
                "likely positions are counted from the step's rows instead of kv.positions.",
            )
    if not checked:
        raise NotCheckedError("no prompt is long enough, or of a kind, that its pages could be shared")


def check_abort(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """A request that is given up in the middle leaves no page behind."""
    del plugin
    for subject in one_of_each_kind(subjects):
        with subject.pipeline(kv_cache=_cache(2**23)) as llm:
            for prompt in _prompts(subject)[:2]:
                stream = llm.stream(TextGenerationRequest(prompt=prompt), max_new_tokens=_NUM_TOKENS)
                for _ in islice(stream, 3):
                    pass
                stream.close()
            _check_all_free(subject, llm)


def check_echo(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """The log probabilities that a pipeline tells, of prompt and answer, are those of the reference."""
    del plugin
    for subject in one_of_each_kind(subjects):
        prompts = _prompts(subject)
        with subject.pipeline(kv_cache=_cache(2**23), max_batch_tokens=40) as llm:
            requests = [TextGenerationRequest(prompt=prompt) for prompt in prompts]
            outputs = llm.generate(requests, max_new_tokens=_NUM_TOKENS, log_probabilities=2, echo=True)
        for prompt, output in zip(prompts, outputs, strict=True):
            tokens = [*prompt, *output.tokens]
            logits = subject.expected(tokens)[:-1]
            next_tokens = torch.tensor(tokens[1:], dtype=torch.int64, device="cpu")
            expected = logits.log_softmax(-1).gather(-1, next_tokens.unsqueeze(-1))[:, 0]
            told = [value for step in output.log_probabilities or () for value in step.token_log_probabilities]
            most = float("inf")
            if len(told) == len(expected):
                most = (torch.tensor(told, dtype=torch.float32, device="cpu") - expected).abs().max().item()
            if not most <= tolerance(logits):
                raise ConformanceError(
                    f"config {subject.name!r}: the pipeline tells other log probabilities than the reference's",
                    found=f"{len(told)} that differ by up to {most:.2g}",
                    allowed=f"{len(expected)}, {tolerance(logits):.2g}",
                    cure="Where the check of log probabilities passes, most likely compute_logits does something else "
                    "for one row than for many.",
                )


def _prompts(subject: Subject) -> list[list[int]]:
    """Several prompts, some of which begin alike; none is so long that answers have no room."""
    room = min(72, subject.max_length - _NUM_TOKENS)
    common = [(5 * i + i * i) % subject.vocab_size for i in range(room)]
    return [[*common[:-2], 4, 8], [3, 7, 1], [*common[:-1], 9], common[3 : room // 3], common[: 2 * room // 3]]


def _longest(prompts: Sequence[list[int]]) -> int:
    return max(map(len, prompts)) + _NUM_TOKENS


def _cache(num_bytes: int) -> KVCacheConfig:
    return KVCacheConfig(page_size=_PAGE_SIZE, kv_cache_memory=num_bytes)


def _few_pages(subject: Subject) -> int:
    """Returns the bytes of a cache in which the longest request has place, and not much more."""
    model = subject.architecture.pipeline_model
    assert issubclass(model, KVCacheMixin)
    params = model.get_kv_params(subject.huggingface_config, 1, _cache(2**23), torch.float32)
    return int(1.3 * params.bytes_held(_longest(_prompts(subject)), max_chunk=_CHUNK))


def _tokens(llm: TextGenerationPipeline, prompts: Sequence[list[int]]) -> list[list[int]]:
    requests = [TextGenerationRequest(prompt=prompt) for prompt in prompts]
    return [list(output.tokens) for output in llm.generate(requests, max_new_tokens=_NUM_TOKENS)]


def _first_other(found: Sequence[list[int]], expected: Sequence[list[int]]) -> int:
    return next(i for i, both in enumerate(zip(found, expected, strict=True)) if both[0] != both[1]) + 1


def _check_all_free(subject: Subject, llm: TextGenerationPipeline) -> None:
    for manager in llm.kv_managers:
        manager.check_integrity()
        manager.reset_prefix_cache()
        if manager.num_free_pages != manager.total_num_pages:
            raise ConformanceError(
                f"config {subject.name!r}: pages are not free when all requests are done",
                found=f"{manager.num_free_pages} of {manager.total_num_pages} free",
                cure="Most likely the plugin's model keeps contexts, or overrides a method of the KV cache's.",
            )
