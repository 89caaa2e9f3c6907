"""What the engine's process counts, read when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipezoo.serve.engine.client import EngineClient

__all__ = ["LABELS", "EngineCollector"]

LABELS = ("model_name", "engine")
"""The labels of all metrics. There is one engine, with all replicas."""


class EngineCollector(Collector):
    """Makes metrics of the engine's last counts.

    Args:
        engine: whose; before it is ready for the first time, there are no metrics.
        prefix: before all names.
        label_values: those of `LABELS`.
    """

    def __init__(self, engine: EngineClient, *, prefix: str, label_values: Sequence[str]) -> None:
        self._engine = engine
        self._prefix = prefix
        self._labels = [*label_values]

    def describe(self) -> Iterable[Metric]:
        """Returns nothing, so that nothing is read before somebody asks."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yields the metrics."""
        counts, facts = self._engine.counts, self._engine.facts
        if counts is None or facts is None:
            return
        usage = 1 - counts.num_free_pages / max(1, counts.num_pages)
        yield self._gauge("num_requests_running", "Answers that have pages.", counts.num_running)
        yield self._gauge("num_requests_waiting", "Answers that wait for pages.", counts.num_waiting)
        yield self._gauge("kv_cache_usage_perc", "The part of the KV cache's pages that is in use, up to 1.", usage)
        yield self._gauge("gpu_cache_usage_perc", "The older name of kv_cache_usage_perc.", usage)
        yield self._counter("num_preemptions", "Requests that lost their pages to others.", counts.num_preemptions)
        yield self._counter("prefix_cache_queries", "Prompt tokens looked for in the cache.", counts.num_prefix_queries)
        yield self._counter("prefix_cache_hits", "Prompt tokens that were found there.", counts.num_prefix_hits)
        info = GaugeMetricFamily(
            f"{self._prefix}cache_config_info",
            "How the KV cache is made.",
            labels=["block_size", "num_gpu_blocks", "engine"],
        )
        info.add_metric([str(facts.page_size), str(counts.num_pages), self._labels[1]], 1)
        yield info

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(f"{self._prefix}{name}", text, labels=LABELS)
        gauge.add_metric(self._labels, value)
        return gauge

    def _counter(self, name: str, text: str, value: float) -> Metric:
        counter = CounterMetricFamily(f"{self._prefix}{name}", text, labels=LABELS)
        counter.add_metric(self._labels, value)
        return counter
