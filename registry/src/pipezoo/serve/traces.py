"""A span for each prompt that the engine answers, in OpenTelemetry's terms. Needs `pip install 'pipezoo[otel]'`.

The attributes are those of the semantic conventions for generative AI, version 1.37, and of vLLM for times in the
engine. No span has anything of a prompt or an answer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipezoo.serve.engine.asked import Asked
from pipezoo.serve.http.current_request import CurrentRequest, current_request
from pipezoo_core.errors import MissingDependencyError
from pipezoo_core.request import FinishReason, RequestID, TextGenerationOutput
from pipezoo_core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

__all__ = ["Traces", "exporting_provider"]

_CHATS = ("/v1/chat/completions", "/v1/responses")
_NANOSECONDS = 1_000_000_000


@dataclass(slots=True)
class _Open:
    """A span that has not ended, and how the request's answers did."""

    span: Span
    num_answers: int
    reasons: dict[int, str] = field(default_factory=dict)
    num_generated: int = 0


def exporting_provider(endpoint: str) -> TracerProvider:
    """Returns what sends spans to a collector, in a thread of its own.

    Args:
        endpoint: of OTLP over HTTP, such as `http://localhost:4318/v1/traces`.

    Raises:
        MissingDependencyError: OpenTelemetry's packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingDependencyError(
            "traces need packages that are not installed",
            found=error.name,
            cure="Try, in a clone: pip install './registry[otel]'",
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "pipezoo"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return provider


class Traces:
    """Makes spans. A `RequestObserver`.

    Args:
        provider: takes them; closed with this.
        model_name: of the served model.
    """

    def __init__(self, provider: TracerProvider, *, model_name: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("pipezoo")
        self._model_name = model_name
        self._open: dict[RequestID, _Open] = {}

    def on_begin(self, request_id: RequestID, asked: Asked, *, num_prompt_tokens: int) -> None:
        """Begins a span below the one that the client names in `traceparent`."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        http = current_request.get() or CurrentRequest("", "", {})
        operation = "chat" if http.path in _CHATS else "text_completion"
        model = asked.lora or self._model_name
        span = self._tracer.start_span(
            f"{operation} {model}",
            context=TraceContextTextMapPropagator().extract(http.trace_headers),
            kind=SpanKind.SERVER,
            start_time=time.time_ns() - int((time.monotonic() - asked.arrival_time) * _NANOSECONDS),
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "pipezoo",
                "gen_ai.request.model": model,
                "gen_ai.response.model": model,
                "gen_ai.response.id": asked.response_id,
                "gen_ai.usage.input_tokens": num_prompt_tokens,
                "http.route": http.path,
                "http.request.header.x-request-id": http.request_id,
                **_sampling(asked.params),
            },
        )
        self._open[request_id] = _Open(span, asked.params.n)

    def on_output(self, output: TextGenerationOutput) -> None:
        """Notes how an answer ended."""
        found = self._open.get(output.request_id)
        if found is None or not output.is_done:
            return
        found.reasons[output.index] = str(output.finish_reason)
        if output.usage is not None:
            found.num_generated += output.usage.num_generated_tokens
        timing = output.timing
        if timing is not None and output.index == 0:
            times = {
                "gen_ai.latency.time_in_queue": timing.queue,
                "gen_ai.latency.time_to_first_token": timing.first_token,
                "gen_ai.latency.e2e": timing.total,
            }
            found.span.set_attributes({name: value for name, value in times.items() if value is not None})

    def on_end(self, request_id: RequestID, error: BaseException | None) -> None:
        """Ends the span; answers that have not ended failed with the request, or were cancelled."""
        found = self._open.pop(request_id, None)
        if found is None:
            return
        if error is not None:
            from opentelemetry.trace import StatusCode

            found.span.set_attribute("error.type", type(error).__name__)
            found.span.set_status(StatusCode.ERROR)
        rest = str(FinishReason.CANCELLED if error is None else FinishReason.ERROR)
        reasons = [found.reasons.get(index, rest) for index in range(found.num_answers)]
        found.span.set_attribute("gen_ai.response.finish_reasons", reasons)
        found.span.set_attribute("gen_ai.usage.output_tokens", found.num_generated)
        found.span.end()

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def _sampling(params: SamplingParams) -> dict[str, int | float]:
    """Returns the attributes of how to sample."""
    asked = {
        "gen_ai.request.max_tokens": params.max_new_tokens,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.choice.count": params.n if params.n > 1 else None,
    }
    return {
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        **{name: value for name, value in asked.items() if value is not None},
    }
