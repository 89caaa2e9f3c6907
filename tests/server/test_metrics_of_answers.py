"""What is counted of a request that has several answers."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipezoo.serve.engine.asked import Asked
from pipezoo.serve.engine.messages import Counts, Ready
from pipezoo.serve.errors import EngineLostError
from pipezoo.serve.metrics.metrics import Metrics
from pipezoo_core.request import GenerationStatus, RequestID, TextGenerationOutput, Timing, Usage
from pipezoo_core.sampling_params import SamplingParams


def asked(params, lora=None):
    return Asked(prompts=[[1, 2]], params=params, lora=lora, arrival_time=0.0, response_id="cmpl-1")


def samples(metrics):
    return [each for family in text_string_to_metric_families(metrics.text().decode()) for each in family.samples]


@pytest.mark.parametrize("sizes", [[3, 7, 5], [7, 5, 3], [5, 3, 7], [4]])
def test_the_longest_answer_is_the_longest_of_all(sizes):
    metrics = Metrics(SimpleNamespace(counts=None, facts=None), model_name="tiny", prefix="vllm:")
    request_id = RequestID("1")
    params = SamplingParams(n=len(sizes), temperature=1)
    metrics.on_begin(request_id, asked(params), num_prompt_tokens=2)

    for index in reversed(range(len(sizes))):
        metrics.on_output(
            TextGenerationOutput(
                request_id=request_id,
                index=index,
                final_status=GenerationStatus.END_OF_SEQUENCE,
                usage=Usage(2, 0, sizes[index], num_draft_tokens=4, num_accepted_tokens=3),
                timing=Timing(0.0, 0.1, 0.2),
            )
        )
    metrics.on_end(request_id, None)

    found = {sample.name: sample.value for sample in samples(metrics)}
    assert found["vllm:request_max_num_generation_tokens_sum"] == max(sizes)
    assert found["vllm:request_max_num_generation_tokens_count"] == 1
    assert found["vllm:request_generation_tokens_sum"] == sum(sizes)
    assert found["vllm:spec_decode_num_draft_tokens_total"] == 4 * len(sizes)
    assert found["vllm:spec_decode_num_accepted_tokens_total"] == 3 * len(sizes)


@pytest.mark.parametrize(("error", "reason"), [(None, "abort"), (EngineLostError("it died"), "error")])
def test_answers_that_did_not_end_were_given_up_or_failed(error, reason):
    metrics = Metrics(SimpleNamespace(counts=None, facts=None), model_name="tiny", prefix="vllm:")
    metrics.on_begin(RequestID("1"), asked(SamplingParams(n=3, temperature=1)), num_prompt_tokens=2)
    done = GenerationStatus.END_OF_SEQUENCE
    metrics.on_output(TextGenerationOutput(request_id=RequestID("1"), index=1, final_status=done))
    metrics.on_end(RequestID("1"), error)

    found = {each.labels["finished_reason"]: each.value for each in samples(metrics) if "success_total" in each.name}
    assert found == {"stop": 1, "length": 0, "abort": 0, "error": 0} | {reason: 2}


def test_a_step_that_fails_fails_those_answers_that_have_not_ended():
    metrics = Metrics(SimpleNamespace(counts=None, facts=None), model_name="tiny", prefix="vllm:")
    error, request_id = RuntimeError("of a step"), RequestID("1")
    metrics.on_begin(request_id, asked(SamplingParams(n=2, temperature=1)), num_prompt_tokens=2)
    done = GenerationStatus.END_OF_SEQUENCE
    metrics.on_output(TextGenerationOutput(request_id=request_id, index=0, final_status=done))
    for index in (0, 1):
        metrics.on_output(replace(TextGenerationOutput.failed(request_id, error), index=index))
    metrics.on_end(request_id, error)

    found = {each.labels["finished_reason"]: each.value for each in samples(metrics) if "success_total" in each.name}
    assert found == {"stop": 1, "length": 0, "abort": 0, "error": 1}


def test_how_many_adapters_there_may_be_is_what_the_engine_says():
    facts = Ready(16, 2, 8, max_num_loras=5, adapters=[], counts=Counts(*[0] * 7))
    metrics = Metrics(SimpleNamespace(counts=None, facts=facts), model_name="tiny", prefix="vllm:")
    metrics.on_begin(RequestID("1"), asked(SamplingParams(), lora="mine"), num_prompt_tokens=2)

    [found] = [each.labels for each in samples(metrics) if each.name == "vllm:lora_requests_info"]
    assert found == {"max_lora": "5", "waiting_lora_adapters": "mine", "running_lora_adapters": ""}
