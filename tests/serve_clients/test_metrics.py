"""`/metrics`: the names that boards of vLLM ask for, and values that agree with what clients got."""

from __future__ import annotations

import re
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve_clients.conftest import running

pytestmark = pytest.mark.slow

# What the panels of vLLM's own Grafana board ask for.
QUERIES = [
    'histogram_quantile(0.99, sum by(le) (rate(vllm:e2e_request_latency_seconds_bucket{model_name="$model"}[5m])))',
    'rate(vllm:e2e_request_latency_seconds_sum{model_name="$model"}[5m])',
    'rate(vllm:e2e_request_latency_seconds_count{model_name="$model"}[5m])',
    'rate(vllm:prompt_tokens_total{model_name="$model"}[5m])',
    'rate(vllm:generation_tokens_total{model_name="$model"}[5m])',
    'histogram_quantile(0.99, sum by(le) (rate(vllm:inter_token_latency_seconds_bucket{model_name="$model"}[5m])))',
    'histogram_quantile(0.99, sum by(le) (rate(vllm:time_per_output_token_seconds_bucket{model_name="$model"}[5m])))',
    'vllm:num_requests_running{model_name="$model"}',
    'vllm:num_requests_waiting{model_name="$model"}',
    'histogram_quantile(0.99, sum by(le) (rate(vllm:time_to_first_token_seconds_bucket{model_name="$model"}[5m])))',
    'vllm:kv_cache_usage_perc{model_name="$model"}',
    'sum by(le) (increase(vllm:request_prompt_tokens_bucket{model_name="$model"}[5m]))',
    'sum by(le) (increase(vllm:request_generation_tokens_bucket{model_name="$model"}[5m]))',
    'sum by(finished_reason) (increase(vllm:request_success_total{model_name="$model"}[5m]))',
    'rate(vllm:request_queue_time_seconds_sum{model_name="$model"}[5m])',
    'rate(vllm:request_prefill_time_seconds_sum{model_name="$model"}[5m])',
    'rate(vllm:request_decode_time_seconds_sum{model_name="$model"}[5m])',
    'rate(vllm:request_max_num_generation_tokens_sum{model_name="$model"}[5m])',
    'rate(vllm:prefix_cache_hits_total{model_name="$model"}[5m]) / rate(vllm:prefix_cache_queries_total[5m])',
    'rate(vllm:num_preemptions_total{model_name="$model"}[5m])',
    "vllm:cache_config_info",
]
BODY = {"model": "tiny", "prompt": "Rome is", "max_tokens": 7, "ignore_eos": True, "seed": 1}


def samples(http):
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]


def value(found, name, **labels):
    return sum(each.value for each in found if each.name == name and labels.items() <= each.labels.items())


def test_a_public_boards_queries_find_their_metrics(http):
    assert http.post("/v1/completions", json=BODY).status_code == 200
    found = samples(http)
    names = {sample.name for sample in found}

    for query in QUERIES:
        for name, label in re.findall(r"(vllm:\w+)(\{model_name)?", query):
            assert name in names, query
            if label:
                assert {each.labels["model_name"] for each in found if each.name == name} == {"tiny"}


def test_the_values_are_those_of_the_answers(http):
    before = samples(http)

    usage = http.post("/v1/completions", json={**BODY, "n": 2}).json()["usage"]

    def grown(name, **labels):
        return value(after, f"vllm:{name}", **labels) - value(before, f"vllm:{name}", **labels)

    after = samples(http)
    assert grown("prompt_tokens_total") == usage["prompt_tokens"]
    assert grown("generation_tokens_total") == usage["completion_tokens"] == 14
    assert grown("request_success_total", finished_reason="length") == 2
    assert grown("time_to_first_token_seconds_count") == grown("e2e_request_latency_seconds_count") == 2
    assert grown("inter_token_latency_seconds_count") == 12
    assert grown("request_params_n_sum") == 2
    assert grown("request_params_max_tokens_sum") == 7
    parts = [grown(f"request_{part}_time_seconds_sum") for part in ("queue", "prefill", "decode")]
    assert sum(parts) == pytest.approx(grown("e2e_request_latency_seconds_sum"))


def test_a_client_that_goes_away_is_counted_as_aborted(http):
    before = value(samples(http), "vllm:request_success_total", finished_reason="abort")

    with http.stream("POST", "/v1/completions", json={**BODY, "max_tokens": 4000, "stream": True}) as response:
        next(response.iter_lines())

    deadline = time.monotonic() + 20
    while value(samples(http), "vllm:request_success_total", finished_reason="abort") == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert value(samples(http), "vllm:num_requests_running") == 0


def test_the_prefix_of_the_names_can_be_set(tiny_folder):
    import httpx

    with running(tiny_folder, metrics_prefix="pipezoo_", shutdown_timeout=1) as address:
        text = httpx.get(f"{address}/metrics").text

    assert "pipezoo_num_requests_running{" in text
    assert "vllm" not in text
