"""What would have to be different in a feed-forward layer, or a mixture of experts, for it to be the reference's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pipezoo_core.errors import PipezooError
from pipezoo_core.layers import ACTIVATIONS, Router, Routing
from pipezoo_core.testing.trace import Point, Trace, are_equal

__all__ = ["activation_cause", "experts_cause"]


def activation_cause(trace: Trace, point: Point) -> str | None:
    """Returns why what a layer reads is not what the reference's reads, where an activation function lies before it.

    Args:
        trace: of both models.
        point: the input of the last layer of a feed-forward part.
    """
    parent = point.module.rpartition(".")[0]
    siblings = [
        each
        for each in trace.points
        if not each.is_input
        and each.when < point.when
        and each.is_equal
        and each.module.rpartition(".")[0] == parent
        and each.wanted.shape == point.wanted.shape
    ]
    outputs = {each.module.rpartition(".")[2]: each.wanted for each in siblings}
    for name, function in ACTIVATIONS.items():
        for said, y in _activated(outputs, function):
            if are_equal(y, point.wanted):
                return (
                    f"The activation in {parent} is another one in the reference: {name!r}{said}. Read it from the "
                    "config, and check which of the two matrices it is applied to."
                )
    return None


def _activated(outputs: dict[str, Tensor], function: object) -> Iterator[tuple[str, Tensor]]:
    assert callable(function)
    for name, x in outputs.items():
        yield f" of {name}", function(x.clone())
        for other, y in outputs.items():
            if other != name:
                yield f" of {name}, times {other}", function(x.clone()) * y


def experts_cause(trace: Trace, point: Point) -> str | None:
    """Returns what is different in the choice of experts: each other one is tried on the plugin's own block.

    Args:
        trace: of both models.
        point: the output of the block.
    """
    block = dict(trace.module.named_modules()).get(point.module)
    given = trace.point(point.module, is_input=True)
    if block is None or given is None or not given.is_equal:
        return None
    routers = [layer for layer in block.modules() if isinstance(layer, Router)]
    if len(routers) == 1:
        router, mine = routers[0], routers[0].routing
        try:
            for routing in _others(mine):
                router.routing = routing
                with torch.inference_mode():
                    if are_equal(block(given.ours.clone()).float(), point.wanted):
                        return _routing_said(point, mine, routing)
        except (PipezooError, TypeError, RuntimeError):
            pass
        finally:
            router.routing = mine
    return (
        f"The mixture {point.module} computes something else: check how the router's logits become weights (before or "
        "after the choice, normalized or not), which experts are which, gate and up, and the shared expert."
    )


def _others(mine: Routing) -> Iterator[Routing]:
    """Yields other ways to choose, those that differ least first."""
    for scores in (mine.scores, "softmax", "softmax_of_chosen", "sigmoid"):
        for normalize in (mine.normalize, not mine.normalize):
            for scale in (mine.scale, 1.0):
                other = replace(mine, scores=scores, normalize=normalize, scale=scale)
                if other != mine:
                    yield other


def _routing_said(point: Point, mine: Routing, wanted: Routing) -> str:
    if wanted.scores != mine.scores:
        what = (
            f"scores={wanted.scores!r}, and {mine.scores!r} in the plugin: the router's order is wrong, softmax before "
            "the choice of experts or after it"
        )
    elif wanted.normalize != mine.normalize:
        are = "are" if wanted.normalize else "are not"
        what = f"normalize={wanted.normalize}: a token's expert weights {are} divided by their sum"
        if wanted.normalize and wanted.scores == "softmax":
            what += ", which is also what a softmax after the choice gives (softmax_of_chosen, the other order)"
    else:
        what = f"scale={wanted.scale:g}, and {mine.scale:g} in the plugin"
    return f"The routing in {point.module} is another one in the reference: {what}. Set Routing accordingly."
