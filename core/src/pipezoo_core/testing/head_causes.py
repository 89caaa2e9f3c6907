"""What would have to be different before the first layer, or behind the last, for it to be the reference's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipezoo_core.layers import LMHead
from pipezoo_core.testing.trace import Point, Trace, are_equal

__all__ = ["embedding_cause", "head_cause"]

_MOST_OFF = 3  # positions


def embedding_cause(trace: Trace, point: Point) -> str | None:
    """Returns why what goes into the first layer is not the reference's; None where the models part later."""
    table = _position_table(trace, point)
    if table is not None:
        return table
    layers = [part for part in point.module.split(".") if part.isdigit()]
    if layers and layers[0] != "0":
        return None
    ratio = _ratio(point.ours, point.wanted)
    if ratio is None:
        return None
    hidden = point.wanted.shape[-1]
    of_hidden = f", √{hidden}: the hidden size's" if abs(ratio - hidden**0.5) < 1e-2 * ratio else ""
    return (
        f"The embedding is scaled otherwise: the reference's is {ratio:.4g} times the plugin's{of_hidden}. Give the "
        "embedding its scale: VocabParallelEmbedding(…, scale=…)."
    )


def head_cause(trace: Trace) -> str | None:
    """Returns why the logits are not the reference's, though the last hidden states are."""
    ours, wanted = trace.logits, trace.wanted_logits
    config = trace.subject.raw_config
    for name, cap in _caps(config):
        if are_equal(cap * torch.tanh(ours / cap), wanted):
            return (
                f"The logits have a soft cap of {cap:g} in the reference ({name}), and none in the plugin: give LMHead \
its softcap."
            )
        if are_equal(cap * torch.tanh(wanted / cap), ours):
            return f"The logits have a soft cap of {cap:g} in the plugin ({name}), and none in the reference."
    ratio = _ratio(ours, wanted)
    if ratio is not None:
        return (
            f"The logits are scaled: the reference's are {ratio:.4g} times the plugin's. Check what the config says of \
a scale of logits."
        )
    off = ours - wanted
    if are_equal(off, off[:1].expand_as(off)):
        return "The head's bias is wrong: both differ by the same numbers for every token."
    heads = [name for name, layer in trace.module.named_modules() if isinstance(layer, LMHead)]
    tied = config.get("tie_word_embeddings")
    return (
        f"The head {', '.join(heads)} computes with other weights than the reference's. The config says "
        f"tie_word_embeddings={tied}: most likely the module does not go by it, LMHead.sharing(embedding) where it "
        "is set."
    )


def _position_table(trace: Trace, point: Point) -> str | None:
    """Finds an embedding of positions that is read at other positions."""
    for name, other in trace.aligned.items():
        ours, theirs = trace.point(name, is_input=False), trace.theirs.get(other)
        if ours is None or theirs is None or ours.when > point.when or ours.is_equal:
            continue
        for by in range(-_MOST_OFF, _MOST_OFF + 1):
            if by and _are_shifted(ours.ours, ours.wanted, by):
                return (
                    f"The positions are off by {abs(by)}: the rows that {name} gives are the reference's of positions "
                    f"{'later' if by > 0 else 'earlier'} by that. Read kv.positions, and add the offset of the "
                    "reference, where its table has one."
                )
    return None


def _are_shifted(ours: Tensor, wanted: Tensor, by: int) -> bool:
    return are_equal(ours[:-by], wanted[by:]) if by > 0 else are_equal(ours[-by:], wanted[:by])


def _ratio(ours: Tensor, wanted: Tensor) -> float | None:
    ratio = (wanted.norm() / ours.norm().clamp(min=1e-9)).item()
    sign = 1.0 if (wanted * ours).sum() > 0 else -1.0
    return sign * ratio if are_equal(sign * ratio * ours, wanted) else None


def _caps(config: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [
        (name, float(value))
        for name, value in config.items()
        if "softcap" in name and isinstance(value, int | float) and value > 0
    ]
