"""What an output says besides its text: why it ended, what it took, how long, and how likely each token was."""

import asyncio
import time

import pytest
from gguf_files import END

from pipezoo_core.context import TextGenerationInputs
from pipezoo_core.errors import NonFiniteLogitsError, PromptTooLongError
from pipezoo_core.request import FinishReason, GenerationStatus, TextGenerationRequest, Usage
from pipezoo_core.sampling_params import SamplingParams

GREEDY = {"temperature": 0.0, "max_new_tokens": 12, "ignore_eos": True}


def test_every_status_has_its_reason():
    from pipezoo_core.request import TextGenerationOutput

    found = {s: TextGenerationOutput(request_id="r", final_status=s).finish_reason for s in GenerationStatus}
    assert found.pop(GenerationStatus.ACTIVE) is None
    assert sorted(found.values()) == sorted(FinishReason)


def test_the_reason_of_each_end(load_tiny):
    llm = load_tiny()
    whole = llm.generate("hello", **GREEDY)[0]
    assert (whole.finish_reason, whole.stop_reason) == ("length", None)

    stop = whole.text[4:6]
    output = llm.generate("hello", **GREEDY, stop=["never this", stop])[0]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)

    token = whole.tokens[5]
    output = llm.generate("hello", **GREEDY, stop_token_ids=[token])[0]
    assert (output.finish_reason, output.stop_reason) == ("stop", token)

    end = {"temperature": 0.0, "max_new_tokens": 5, "logit_bias": {END: 1000.0}}
    output = llm.generate("hello", **end)[0]
    assert (output.finish_reason, output.stop_reason) == ("stop", None)
    output = llm.generate("hello", **end, stop_token_ids=[END])[0]
    assert (output.finish_reason, output.stop_reason) == ("stop", END)

    output = llm.generate("hello", temperature=0.0, regex="[a-z]{3}")[0]
    assert (output.finish_reason, output.stop_reason) == ("stop", None)


def test_the_reasons_of_cancelled_and_failed_requests(load_tiny):
    llm = load_tiny()
    request = TextGenerationRequest(prompt="hello")
    outputs = []

    async def run():
        async for step in llm.generate_async(request, **{**GREEDY, "max_new_tokens": 100}):
            outputs.extend(step)
            if len(outputs) == 3:
                llm.cancel(request.request_id)

    asyncio.run(run())
    assert [output.finish_reason for output in outputs[:3]] == [None] * 3
    assert outputs[-1].finish_reason == "cancelled"
    assert outputs[-1].usage.num_generated_tokens == sum(len(output.tokens) for output in outputs)

    refused = llm.generate(["h" * 300], **GREEDY)[0]
    assert (refused.finish_reason, refused.usage, refused.timing) == ("error", None, None)
    assert isinstance(refused.error, PromptTooLongError)

    llm.model.module.model.embed_tokens.weight.data[100] = float("nan")
    failed = llm.generate([TextGenerationRequest(prompt=[5, 100])], **GREEDY)[0]
    assert isinstance(failed.error, NonFiniteLogitsError)
    assert (failed.finish_reason, failed.usage) == ("error", Usage(2, 0, 0))
    assert failed.timing.first_token is None


@pytest.mark.parametrize("max_batch_tokens", [1024, 7])
def test_usage_counts_tokens(load_tiny, max_batch_tokens):
    llm = load_tiny(max_batch_tokens=max_batch_tokens)
    prompt = TextGenerationRequest(prompt=list(range(40)))
    assert llm.generate(prompt, **GREEDY)[0].usage == Usage(40, 0, 12)
    assert llm.generate(prompt, **GREEDY)[0].usage == Usage(40, 32, 12)  # whole pages of 8, and never the last token
    hits = llm.kv_managers[0].metrics.prefix_hit_tokens
    several = [TextGenerationRequest(prompt=[*range(17), *range(100 + i, 120 + i)]) for i in range(3)]
    outputs = llm.generate(several, **GREEDY)
    assert [output.usage.num_prompt_tokens for output in outputs] == [37] * 3
    assert sum(o.usage.num_cached_tokens for o in outputs) == llm.kv_managers[0].metrics.prefix_hit_tokens - hits > 0


def test_what_a_preempted_request_computes_anew_is_not_from_the_cache(load_tiny):
    params = load_tiny().kv_managers[0].params
    num_pages = params.num_pages_for(80) + 1
    llm = load_tiny(kv_cache_memory=num_pages * params.page_bytes[0], max_length=80)
    prompts = [TextGenerationRequest(prompt=list(range(20 * i, 20 * i + 20))) for i in range(4)]
    outputs = llm.generate(prompts, **{**GREEDY, "max_new_tokens": 40})
    assert llm.scheduler.num_preemptions > 0
    assert [output.usage for output in outputs] == [Usage(20, 0, 40)] * 4


def test_only_the_last_piece_has_usage_and_timing(load_tiny):
    llm = load_tiny()

    async def pieces():
        return [output async for step in llm.generate_async("hello", **GREEDY) for output in step]

    *others, last = asyncio.run(pieces())
    assert {(output.usage, output.timing) for output in others} == {(None, None)}
    assert last.usage == Usage(4, 0, 12)
    assert last.timing is not None


def test_times_follow_one_another(load_tiny):
    llm = load_tiny(max_batch_size=1)
    began = time.monotonic()
    first, second = llm.generate(["hello", "he"], **GREEDY)
    elapsed = time.monotonic() - began
    for timing in (first.timing, second.timing):
        assert 0 <= timing.queue <= timing.first_token <= timing.total <= elapsed
    assert second.timing.queue >= first.timing.first_token  # it waited for its turn


def test_execute_alone_says_what_a_request_took(load_tiny):
    llm = load_tiny()
    request = TextGenerationRequest(prompt="hello", sampling_params=SamplingParams(**GREEDY))
    context = llm.tokenizer.new_context(request)
    output = llm.execute(TextGenerationInputs([{context.request_id: context}], num_steps=12))[context.request_id]
    llm.release(context.request_id)
    assert output.usage == Usage(4, 0, 12)
    assert 0 <= output.timing.queue <= output.timing.first_token <= output.timing.total


def test_log_probabilities_name_their_tokens(load_tiny):
    llm = load_tiny()
    output = llm.generate("hello", **GREEDY, log_probabilities=3)[0]
    for entry, token in zip(output.log_probabilities, output.tokens, strict=True):
        (best,) = entry.top_log_probabilities
        assert list(best) == sorted(best, key=best.get, reverse=True)
        assert next(iter(best)) == token
        assert entry.token_ranks == [1]
        assert entry.token_texts == {of_best: llm.tokenizer.text_of(of_best) for of_best in best}
    assert "".join(entry.token_texts[t] for entry, t in zip(output.log_probabilities, output.tokens, strict=True)) == (
        "".join(llm.tokenizer.text_of(token) for token in output.tokens)
    )


def test_zero_asks_for_the_generated_tokens_alone(load_tiny):
    llm = load_tiny()
    settings = {**GREEDY, "temperature": 1.0, "seed": 3}
    alone = llm.generate("hello", **settings, log_probabilities=0)[0]
    several = llm.generate("hello", **settings, log_probabilities=128)[0]
    assert alone.tokens == several.tokens
    for token, entry, whole in zip(alone.tokens, alone.log_probabilities, several.log_probabilities, strict=True):
        assert entry.top_log_probabilities == [{token: entry.token_log_probabilities[0]}]
        assert entry.token_log_probabilities == whole.token_log_probabilities
        assert entry.token_ranks == whole.token_ranks
    assert llm.generate("hello", **settings)[0].log_probabilities is None
