"""Spans of requests, as a collector gets them, and the log in lines of JSON."""

from __future__ import annotations

import gzip
import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from serve_clients.conftest import running

from pipezoo.serve.engine.asked import Asked
from pipezoo.serve.errors import EngineLostError
from pipezoo.serve.log_lines import JSONLines
from pipezoo.serve.traces import Traces
from pipezoo_core.request import RequestID
from pipezoo_core.sampling_params import SamplingParams

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class _Collector(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans = []

    def __enter__(self):
        threading.Thread(target=self.serve_forever).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            data = gzip.decompress(data)
        found = ExportTraceServiceRequest.FromString(data)
        self.server.spans += [
            span for part in found.resource_spans for scope in part.scope_spans for span in scope.spans
        ]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


def _plain(attributes):
    def value(any_value):
        kind = any_value.WhichOneof("value")
        found = getattr(any_value, kind)
        return [value(each) for each in found.values] if kind == "array_value" else found

    return {each.key: value(each.value) for each in attributes}


@pytest.mark.slow
def test_a_span_says_what_was_asked_and_answered_and_nothing_of_the_text(tiny_folder):
    body = {"model": "tiny", "prompt": "secret words", "max_tokens": 5, "ignore_eos": True, "seed": 1}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    with _Collector() as collector:
        endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        with running(tiny_folder, otlp_traces_endpoint=endpoint, shutdown_timeout=1) as address:
            answer = httpx.post(f"{address}/v1/completions", json=body, headers=headers, timeout=60)
            assert answer.status_code == 200
            chat = {"messages": [{"role": "user", "content": "secret"}], "max_tokens": 3, "n": 2}
            assert httpx.post(f"{address}/v1/chat/completions", json=chat, timeout=60).status_code == 200

        first, second = collector.spans
    found = _plain(first.attributes)
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert first.name == "text_completion tiny"
    assert found["gen_ai.operation.name"] == "text_completion"
    assert found["gen_ai.response.id"] == answer.json()["id"]
    assert found["gen_ai.request.max_tokens"] == found["gen_ai.usage.output_tokens"] == 5
    assert found["gen_ai.usage.input_tokens"] == len("secret words")
    assert found["gen_ai.response.finish_reasons"] == ["length"]
    assert found["http.request.header.x-request-id"] == "mine"
    assert 0 <= found["gen_ai.latency.time_in_queue"] <= found["gen_ai.latency.time_to_first_token"]
    seconds = (first.end_time_unix_nano - first.start_time_unix_nano) / 1e9
    assert found["gen_ai.latency.e2e"] == pytest.approx(seconds, abs=0.5)
    assert second.name == "chat tiny"
    assert not second.parent_span_id
    assert len(_plain(second.attributes)["gen_ai.response.finish_reasons"]) == 2
    assert "secret" not in str(first) + str(second)


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [(None, "cancelled", StatusCode.UNSET), (EngineLostError("it died"), "error", StatusCode.ERROR)],
)
def test_a_span_says_whether_its_request_was_given_up_or_failed(error, reason, status):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces = Traces(provider, model_name="tiny")
    asked = Asked(prompts=[[1]], params=SamplingParams(), lora=None, arrival_time=0.0, response_id="cmpl-1")
    traces.on_begin(RequestID("1"), asked, num_prompt_tokens=1)
    traces.on_end(RequestID("1"), error)

    [span] = exporter.get_finished_spans()
    assert span.attributes["gen_ai.response.id"] == "cmpl-1"
    assert span.attributes["gen_ai.response.finish_reasons"] == (reason,)
    assert span.attributes.get("error.type") == (None if error is None else "EngineLostError")
    assert span.status.status_code is status


@pytest.mark.slow
def test_requests_are_logged_without_their_text(http, caplog):
    with caplog.at_level(logging.INFO, logger="pipezoo.serve"):
        body = {"model": "tiny", "prompt": "secret words", "max_tokens": 2}
        response = http.post("/v1/completions", json=body, headers={"x-request-id": "mine"})

        assert response.headers["x-request-id"] == "mine"
        deadline = time.monotonic() + 20
        while not (records := [each for each in caplog.records if each.name == "pipezoo.serve"]):
            assert time.monotonic() < deadline  # it is logged when the response is through
            time.sleep(0.01)

    [record] = records
    line = json.loads(JSONLines().format(record))
    assert (line["request_id"], line["method"], line["path"], line["status"]) == (
        "mine",
        "POST",
        "/v1/completions",
        200,
    )
    assert line["seconds"] > 0
    assert "secret" not in caplog.text


def test_an_exception_is_one_line_of_the_log():
    try:
        raise ValueError("a\nb")
    except ValueError as error:
        record = logging.LogRecord("pipezoo", logging.ERROR, "", 0, "failed", None, (ValueError, error, None))

    text = JSONLines().format(record)

    assert "\n" not in text
    assert json.loads(text)["exception"].endswith("ValueError: a\nb")
