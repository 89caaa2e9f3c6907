"""Counts and times of requests, as the server's process sees them.

The names and what they mean are those of vLLM's documentation on metrics. The bounds of times are finer at their lower
end, for GPUs, and reach further up, for CPUs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from pipezoo.serve.engine.asked import Asked
from pipezoo.serve.engine.client import EngineClient
from pipezoo.serve.metrics.engine_collector import LABELS, EngineCollector
from pipezoo_core.request import FinishReason, RequestID, TextGenerationOutput
from pipezoo_core.sampling_params import SamplingParams

__all__ = ["Metrics"]

_ENGINE = "0"
_STEPS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60),
)
_FIRST_TOKENS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 320, 640),
)
_REQUESTS = (0.005, 0.02, 0.05, 0.1, 0.3, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 240, 480, 960, 1920, 3840)
_TOKENS = tuple(digit * 10**power for power in range(7) for digit in (1, 2, 5))
_NUMBERS = (1, 2, 5, 10, 20, 50, 100)
_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "abort",
    FinishReason.ERROR: "error",
}


@dataclass(slots=True)
class _Running:
    """A request that is not over."""

    arrival_time: float
    num_prompt_tokens: int
    params: SamplingParams
    lora: str | None
    last: dict[int, float] = field(default_factory=dict)  # answer -> when its last token came
    ended: set[int] = field(default_factory=set)
    most_tokens: int = 0  # of its answers that have ended


class Metrics:
    """Counts what an engine answers. A `RequestObserver`.

    Args:
        engine: whose counts are shown, too.
        model_name: the label of the model.
        prefix: before all names.
    """

    def __init__(self, engine: EngineClient, *, model_name: str, prefix: str) -> None:
        self._engine = engine
        self._registry = CollectorRegistry()
        self._prefix = prefix
        self._labels = (model_name, _ENGINE)
        self._running: dict[RequestID, _Running] = {}
        self._registry.register(EngineCollector(engine, prefix=prefix, label_values=self._labels))
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self._generation_tokens = self._counter("generation_tokens", "Generated tokens.")
        self._draft_tokens = self._counter("spec_decode_num_draft_tokens", "Tokens of drafts that were verified.")
        self._accepted_tokens = self._counter("spec_decode_num_accepted_tokens", "Those of them that came.")
        self._success = Counter(
            f"{prefix}request_success",
            "Answers that have ended, by why.",
            (*LABELS, "finished_reason"),
            registry=self._registry,
        )
        for reason in _REASONS.values():
            self._success.labels(*self._labels, reason)
        self._first = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", _FIRST_TOKENS)
        self._between = self._histogram("inter_token_latency_seconds", "Between two tokens of an answer.", _STEPS)
        self._per_token = self._histogram("time_per_output_token_seconds", "The older name of the same.", _STEPS)
        self._mean_per_token = self._histogram(
            "request_time_per_output_token_seconds", "Between two tokens, the mean of an answer.", _STEPS
        )
        self._total = self._histogram("e2e_request_latency_seconds", "From arrival to the end.", _REQUESTS)
        self._queue = self._histogram("request_queue_time_seconds", "From arrival to the first step.", _REQUESTS)
        self._inference = self._histogram("request_inference_time_seconds", "From the first step on.", _REQUESTS)
        self._prefill = self._histogram("request_prefill_time_seconds", "First step to first token.", _REQUESTS)
        self._decode = self._histogram("request_decode_time_seconds", "First token to the end.", _REQUESTS)
        self._prompt_sizes = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._answer_sizes = self._histogram("request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self._most_tokens = self._histogram(
            "request_max_num_generation_tokens", "Tokens of a request's longest answer.", _TOKENS
        )
        self._max_tokens = self._histogram("request_params_max_tokens", "Tokens that were asked for.", _TOKENS)
        self._numbers = self._histogram("request_params_n", "Answers that were asked for.", _NUMBERS)
        self._adapters = Gauge(
            f"{prefix}lora_requests_info",
            "Adapters of requests that run and that wait; the value is the time of the last change.",
            ("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
            registry=self._registry,
        )

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def on_begin(self, request_id: RequestID, asked: Asked, *, num_prompt_tokens: int) -> None:
        """Notes a request that was handed to the engine."""
        self._running[request_id] = _Running(asked.arrival_time, num_prompt_tokens, asked.params, asked.lora)
        if asked.lora is not None:
            self._show_adapters()

    def on_output(self, output: TextGenerationOutput) -> None:
        """Counts an answer's new tokens, and how it ended."""
        running = self._running.get(output.request_id)
        if running is None:
            return
        now, num_tokens = time.monotonic(), len(output.tokens)
        if num_tokens:
            self._count_tokens(running, output.index, num_tokens, now)
        if output.is_done and output.index not in running.ended:  # a step that fails says so of all answers
            self._count_end(running, output)

    def on_end(self, request_id: RequestID, error: BaseException | None) -> None:
        """Forgets a request; answers that have not ended failed with it, or were cancelled."""
        running = self._running.pop(request_id, None)
        if running is None:
            return
        reason = _REASONS[FinishReason.CANCELLED if error is None else FinishReason.ERROR]
        self._success.labels(*self._labels, reason).inc(running.params.n - len(running.ended))
        if running.lora is not None:
            self._show_adapters()

    def _count_tokens(self, running: _Running, index: int, num_tokens: int, now: float) -> None:
        self._generation_tokens.inc(num_tokens)
        last = running.last.get(index)
        running.last[index] = now
        if last is None:
            self._first.observe(now - running.arrival_time)
            if len(running.last) == 1:
                self._prompt_tokens.inc(running.num_prompt_tokens)
                if running.lora is not None:
                    self._show_adapters()
            return
        for _ in range(num_tokens):
            self._between.observe((now - last) / num_tokens)
            self._per_token.observe((now - last) / num_tokens)

    def _count_end(self, running: _Running, output: TextGenerationOutput) -> None:
        running.ended.add(output.index)
        reason = output.finish_reason
        self._success.labels(*self._labels, _REASONS[reason] if reason is not None else "error").inc()
        usage, timing = output.usage, output.timing
        if usage is None or timing is None:
            return
        self._draft_tokens.inc(usage.num_draft_tokens)
        self._accepted_tokens.inc(usage.num_accepted_tokens)
        self._total.observe(timing.total)
        self._answer_sizes.observe(usage.num_generated_tokens)
        running.most_tokens = max(running.most_tokens, usage.num_generated_tokens)
        if len(running.ended) == running.params.n:
            self._most_tokens.observe(running.most_tokens)
        if timing.queue is not None:
            self._queue.observe(timing.queue)
            self._inference.observe(timing.total - timing.queue)
        if timing.first_token is not None:
            self._prefill.observe(timing.first_token - (timing.queue or 0))
            self._decode.observe(timing.total - timing.first_token)
            if usage.num_generated_tokens > 1:
                between = (timing.total - timing.first_token) / (usage.num_generated_tokens - 1)
                self._mean_per_token.observe(between)
        if output.index == 0:
            self._prompt_sizes.observe(usage.num_prompt_tokens)
            self._numbers.observe(running.params.n)
            if running.params.max_new_tokens is not None:
                self._max_tokens.observe(running.params.max_new_tokens)

    def _show_adapters(self) -> None:
        waiting = {each.lora for each in self._running.values() if each.lora is not None and not each.last}
        running = {each.lora for each in self._running.values() if each.lora is not None and each.last}
        facts = self._engine.facts
        most = 0 if facts is None else facts.max_num_loras
        self._adapters.clear()
        self._adapters.labels(str(most), ",".join(sorted(waiting)), ",".join(sorted(running))).set_to_current_time()

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"{self._prefix}{name}", text, LABELS, registry=self._registry).labels(*self._labels)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        found = Histogram(f"{self._prefix}{name}", text, LABELS, registry=self._registry, buckets=buckets)
        return found.labels(*self._labels)
