"""What would have to be different in a norm or a linear layer for it to be the reference's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipezoo_core.layers import LayerNorm, Linear, RMSNorm
from pipezoo_core.testing.trace import Point, Trace, are_equal

__all__ = ["layer_cause"]

_EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12, 0.0)


def layer_cause(trace: Trace, point: Point) -> str | None:
    """Returns why the output of a layer is not the reference's, though its input is; None where that is not known."""
    layer = dict(trace.module.named_modules()).get(point.module)
    given = trace.point(point.module, is_input=True)
    x = given.ours if given is not None and given.is_equal else None
    if x is None:
        return None
    if isinstance(layer, RMSNorm | LayerNorm):
        return _norm_cause(trace, point, x)
    if layer is None or isinstance(layer, Linear):
        return _linear_cause(trace, point, x)
    return None


def _norm_cause(trace: Trace, point: Point, x: Tensor) -> str | None:
    layer = trace.module.get_submodule(point.module)
    x = x.view(*x.shape[:-1], -1, _size(layer)) if x.shape[-1] != _size(layer) else x
    wanted = point.wanted.view(x.shape)
    for said, y in _norms(trace, layer, x.double()):
        if are_equal(y.float(), wanted):
            return f"The norm {point.module} is another one in the reference: {said}."
    return (
        f"The norm {point.module} is another one in the reference: check its epsilon, whether 1 is added to its "
        "weight, whether it takes off the mean, and over how many numbers it goes."
    )


def _norms(trace: Trace, layer: torch.nn.Module, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    config = trace.subject.raw_config
    weight = getattr(layer, "weight", None)
    bias = getattr(layer, "bias", None)
    scale = torch.ones(_size(layer), dtype=torch.float64, device="cpu") if weight is None else weight.detach().double()
    shift = 0.0 if bias is None else bias.detach().double()
    mine = getattr(layer, "eps", None)
    named = {value: name for name, value in config.items() if name.endswith(("eps", "epsilon"))}
    for eps in {**named, **dict.fromkeys(_EPSILONS)}:
        where = f", {named[eps]} in the config" if named.get(eps) else ""
        as_eps = "" if eps == mine else f"its eps is {eps:g}{where}, and {mine} in the plugin; "
        squares = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * x
        centered = x - x.mean(-1, keepdim=True)
        variance = torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps) * centered
        yield as_eps + "wrong eps", squares * scale + shift
        yield as_eps + "wrong eps", variance * scale + shift
        yield as_eps + "the norm's offset: 1 is added to its weight (RMSNorm(…, offset=1.0))", squares * (1 + scale)
        yield as_eps + "it is an RMSNorm, whose weight is not offset by 1", squares * scale
        yield as_eps + "it takes off the mean: a LayerNorm", variance * scale
        yield as_eps + "its weight is not used", squares


def _size(layer: torch.nn.Module) -> int:
    weight = getattr(layer, "weight", None)
    size: int = layer.size if weight is None else weight.shape[-1]  # type: ignore[assignment]  # LayerNorm has it
    return size


def _linear_cause(trace: Trace, point: Point, x: Tensor) -> str | None:
    try:
        weight = trace.weight(f"{point.module}.weight")
    except (AttributeError, KeyError):
        return None
    off = point.ours - point.wanted
    if off.dim() == 2 and are_equal(off, off[:1].expand_as(off)):
        return (
            f"The bias of {point.module} is wrong: both differ by the same numbers for every token. Most likely a "
            "bias is dropped, by the weight adapter or because the layer is built without one, or added twice."
        )
    if weight.shape[0] == weight.shape[1]:
        for without_bias in (point.wanted, point.wanted - (point.ours - x @ weight.T)):
            if are_equal(x @ weight, without_bias):
                return (
                    f"The weight of {point.module} is transposed: the reference multiplies by the other one. A "
                    "Conv1D's is stored as [in, out] (LazyTensor.transposed), a Linear's as [out, in]."
                )
    return (
        f"The weights of {point.module} are others than the reference's. Most likely the weight adapter takes the "
        "rows of another part of a fused weight, or in another order, or a transposed matrix."
    )
