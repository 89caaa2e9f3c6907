"""Where a plugin's model leaves the reference, and what its author most likely got wrong."""

from __future__ import annotations

from pipezoo_core.attention import Attention
from pipezoo_core.layers import Experts
from pipezoo_core.testing.attention_causes import attention_cause
from pipezoo_core.testing.failures import ConformanceError
from pipezoo_core.testing.feed_forward_causes import activation_cause, experts_cause
from pipezoo_core.testing.head_causes import embedding_cause, head_cause
from pipezoo_core.testing.layer_causes import layer_cause
from pipezoo_core.testing.subject import Subject
from pipezoo_core.testing.trace import Point, Trace, are_equal

__all__ = ["diagnose"]

_UNKNOWN = (
    "What is computed between these two is not what the reference computes: compare the two forwards line by line. "
    "The usual mistakes: an epsilon, a scale, a norm on the other side of a sum, an order of parts."
)


def diagnose(subject: Subject, difference: float) -> ConformanceError:
    """Returns an error that says where the two models part, and why.

    Args:
        subject: on whose config they do.
        difference: of their log probabilities.
    """
    trace = Trace(subject)
    if are_equal(trace.logits, trace.wanted_logits):
        return ConformanceError(
            f"config {subject.name!r}: log probabilities are not the reference's with the fastest backends, and are "
            "with attention='reference' and linear='torch'",
            found=f"a difference of {difference:.2g}",
            cure="Most likely the module computes beside core's layers what these do otherwise on kernels.",
        )
    before, first = trace.parted
    return ConformanceError(
        f"config {subject.name!r}: log probabilities are not the reference's. The first tensor that differs is "
        f"{_said(first)}",
        found=f"a difference of {difference:.2g}" + (f"; the last one that is equal: {before}" if before else ""),
        cure=_cause(trace, before, first) or _UNKNOWN,
    )


def _said(point: Point | None) -> str:
    if point is None:
        return "the logits"
    layers = [part for part in point.module.split(".") if part.isdigit()]
    return f"{point}" + (f", in layer {layers[0]}" if layers else "")


def _cause(trace: Trace, before: Point | None, first: Point | None) -> str | None:
    if first is None:
        return head_cause(trace)
    begin = before.when if before else -1
    if first.is_input:
        for name, module, call in trace.calls_between(begin - 1, first.when, Attention):
            return attention_cause(trace, name, module, call, first)
        return activation_cause(trace, first) or embedding_cause(trace, first)
    for _, _, call in trace.calls_between(begin, first.when, Experts):
        if call.begun > begin:
            return experts_cause(trace, first)
    return layer_cause(trace, first) or embedding_cause(trace, first)
