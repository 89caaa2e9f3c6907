"""What is counted of a request that has several answers."""

from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipezoo.serve.metrics.metrics import Metrics
from pipezoo_core.request import GenerationStatus, RequestID, TextGenerationOutput, Timing, Usage
from pipezoo_core.sampling_params import SamplingParams


@pytest.mark.parametrize("sizes", [[3, 7, 5], [7, 5, 3], [5, 3, 7], [4]])
def test_the_longest_answer_is_the_longest_of_all(sizes):
    metrics = Metrics(SimpleNamespace(counts=None, facts=None), model_name="tiny", prefix="vllm:")
    request_id = RequestID("1")
    params = SamplingParams(n=len(sizes), temperature=1)
    metrics.on_begin(request_id, num_prompt_tokens=2, params=params, lora=None, arrival_time=0.0)

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
    metrics.on_end(request_id)

    families = text_string_to_metric_families(metrics.text().decode())
    found = {sample.name: sample.value for family in families for sample in family.samples}
    assert found["vllm:request_max_num_generation_tokens_sum"] == max(sizes)
    assert found["vllm:request_max_num_generation_tokens_count"] == 1
    assert found["vllm:request_generation_tokens_sum"] == sum(sizes)
    assert found["vllm:spec_decode_num_draft_tokens_total"] == 4 * len(sizes)
    assert found["vllm:spec_decode_num_accepted_tokens_total"] == 3 * len(sizes)
