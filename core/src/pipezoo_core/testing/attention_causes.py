"""What would have to be different in a layer's attention for it to be the reference's.

Attention is computed anew, slowly and in float64, with one thing changed at a time; what comes to the reference's
result is the cause.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pipezoo_core.attention import Attention, AttentionSpec
from pipezoo_core.errors import PipezooError
from pipezoo_core.layers import RotaryEmbedding
from pipezoo_core.testing.recording import Call
from pipezoo_core.testing.trace import Point, Trace, are_equal

__all__ = ["attention_cause"]

_BASES = (10_000.0, 500_000.0, 1_000_000.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Attempt:
    """One way to compute a layer's attention.

    Attributes:
        spec: see there.
        cos: [T, R]; None for no rotation.
        sin: [T, R].
        in_neighbours: rotates neighbours instead of halves.
        as_stored: takes back a reordering of q's and k's rows from neighbours to halves.
        is_causal: no token sees later ones.
        order: of the key/value heads: those of query heads in a row, of every n-th query head, or the former reversed.
    """

    spec: AttentionSpec
    cos: Tensor | None
    sin: Tensor | None
    in_neighbours: bool = False
    as_stored: bool = False
    is_causal: bool = True
    order: Literal["in a row", "every n-th", "reversed"] = "in a row"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Tensor:
        """Maps q [T, heads · D], k and v of one request to [T, heads · value_size]."""
        spec, num_rows = self.spec, len(q)
        q_TND = self._rotated(q.double().view(num_rows, spec.num_heads, -1))
        k_TMD = self._rotated(k.double().view(num_rows, spec.num_kv_heads, -1))
        v_TMD = v.double().view(num_rows, spec.num_kv_heads, -1)
        owner = self._key_value_heads()
        scores = torch.einsum("tnd,snd->nts", q_TND, k_TMD[:, owner]) * spec.scale
        if spec.softcap is not None:
            scores = spec.softcap * torch.tanh(scores / spec.softcap)
        positions = torch.arange(num_rows, dtype=torch.int64, device="cpu")
        bias = spec.bias(positions, positions).double()
        scores = scores + bias if self.is_causal else scores
        if sinks is not None:
            scores = torch.cat((scores, sinks.double().view(-1, 1, 1).expand(-1, num_rows, 1)), dim=-1)
        weights = scores.softmax(-1)[..., :num_rows]
        return torch.einsum("nts,snd->tnd", weights, v_TMD[:, owner]).flatten(1).float()

    def _key_value_heads(self) -> Tensor:
        """Returns for each query head the key/value head that it reads."""
        heads = torch.arange(self.spec.num_heads, dtype=torch.int64, device="cpu")
        if self.order == "every n-th":
            return heads % self.spec.num_kv_heads
        in_a_row = heads // self.spec.num_groups
        return in_a_row.flip(0) if self.order == "reversed" else in_a_row

    def _rotated(self, x_TND: Tensor) -> Tensor:
        if self.cos is None or self.sin is None:
            return x_TND
        width = self.cos.shape[-1]
        cos, sin = self.cos.double().unsqueeze(1), self.sin.double().unsqueeze(1)
        rotated, kept = x_TND[..., :width], x_TND[..., width:]
        if self.as_stored:
            rotated = rotated.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        if self.in_neighbours:
            cos, sin = (tensor[..., : width // 2].repeat_interleave(2, -1) for tensor in (cos, sin))
            turned = torch.stack((-rotated[..., 1::2], rotated[..., ::2]), dim=-1).flatten(-2)
        else:
            first, second = rotated.chunk(2, dim=-1)
            turned = torch.cat((-second, first), dim=-1)
        return torch.cat((rotated * cos + turned * sin, kept), dim=-1)


def attention_cause(trace: Trace, name: str, module: Attention, call: Call, point: Point) -> str | None:
    """Returns what is different in the reference's attention.

    Args:
        trace: of both models.
        name: of the attention.
        module: the attention.
        call: of it.
        point: behind it, where the models are different: the input of the layer that reads its result.
    """
    given = inspect.signature(module.forward).bind(*call.arguments, **call.named).arguments
    q, k, v, rotation, sinks = (given.get(key) for key in ("q", "k", "v", "rotation", "sinks"))
    spec: AttentionSpec = module.backend.spec
    if q is None or k is None or v is None or spec.values_in_keys:
        return None
    cos, sin = rotation if isinstance(rotation, tuple) else (None, None)
    ours = Attempt(spec=spec, cos=cos, sin=sin)
    where = f"In the attention of layer {module.layer_idx}"
    as_is = ours(q, k, v, sinks)
    result = call.output
    if result is not None and not are_equal(result, as_is):
        return None
    if not are_equal(as_is, point.ours):
        return (
            f"{where}: what {point.module} reads is not what {name} returned. Most likely something is computed "
            "between them that the reference does not compute, or the attention is computed without core's "
            "Attention."
        )
    for cause, attempt in _attempts(trace, ours):
        if are_equal(attempt(q, k, v, sinks), point.wanted):
            return f"{where}, {cause}"
    return (
        f"{where} something differs that is none of the usual: check the order of q, k and v, norms of heads, what is "
        "rotated, the scale, the window and the soft cap against the reference."
    )


def _attempts(trace: Trace, ours: Attempt) -> Iterator[tuple[str, Attempt]]:
    config = trace.subject.raw_config
    yield from _other_rotations(trace, ours, config)
    yield from _other_scales(ours, config)
    yield from _other_windows(trace, ours, config)
    for softcap in _numbers(config, "softcap"):
        yield (
            f"the scores have a soft cap of {softcap:g} in the reference and {ours.spec.softcap} in the plugin: set "
            "AttentionSpec.softcap.",
            replace(ours, spec=replace(ours.spec, softcap=softcap)),
        )
    if ours.spec.softcap is not None:
        yield (
            f"the scores have no soft cap in the reference, and one of {ours.spec.softcap:g} in the plugin.",
            replace(ours, spec=replace(ours.spec, softcap=None)),
        )
    yield (
        "tokens see later ones in the reference: it is not causal.",
        replace(ours, is_causal=False),
    )
    for order in ("every n-th", "reversed"):
        yield (
            "the key/value heads are mixed up: a query head reads another one in the plugin than in the reference. "
            "Check how the heads lie in the rows of q, k and v; query heads in a row share one.",
            replace(ours, order=order),
        )


def _other_rotations(trace: Trace, ours: Attempt, config: Mapping[str, Any]) -> Iterator[tuple[str, Attempt]]:
    if ours.cos is None:
        for base, cos, sin in _rotations(trace, ours, config):
            yield (
                f"queries and keys are rotated in the reference (RoPE, base {base:g}), and not in the plugin.",
                replace(ours, cos=cos, sin=sin),
            )
        return
    yield (
        "the reference rotates neighbours (interleaved pairs), and the plugin halves: reorder the rows of q and k "
        "in the weight adapter, by `halves` of pipezoo_core.layers.",
        replace(ours, in_neighbours=True),
    )
    yield (
        "the plugin has q's and k's numbers in another order: the weight adapter reorders their rows from "
        "neighbours to halves, and the checkpoint has them in halves already.",
        replace(ours, as_stored=True),
    )
    yield "the reference rotates nothing: it has no RoPE there.", replace(ours, cos=None, sin=None)
    for base, cos, sin in _rotations(trace, ours, config):
        yield (
            f"the RoPE base is wrong: the reference rotates with rope_parameters of the config, base {base:g}, on "
            f"{cos.shape[-1]} numbers of a head, and the plugin otherwise. Most likely another entry is read, or "
            "another layer's.",
            replace(ours, cos=cos, sin=sin),
        )


def _rotations(trace: Trace, ours: Attempt, config: Mapping[str, Any]) -> Iterator[tuple[float, Tensor, Tensor]]:
    positions = torch.arange(len(trace.tokens), dtype=torch.int64, device="cpu")
    lengths = torch.full_like(positions, len(trace.tokens))
    length = trace.subject.max_length
    rope = config.get("rope_parameters") or {}
    kinds = [value for value in rope.values() if isinstance(value, Mapping)] or [rope]
    kinds += [{"rope_type": "default", "rope_theta": base} for base in _BASES]
    for kind in kinds:
        for width in (None, ours.spec.head_dim, ours.spec.head_dim // 2, ours.spec.head_dim // 4):
            try:
                table = RotaryEmbedding(kind, ours.spec.head_dim, length, width)
            except (PipezooError, KeyError):
                continue
            cos, sin = table(positions, lengths, torch.float32)
            yield float(kind.get("rope_theta", math.nan)), cos, sin


def _other_scales(ours: Attempt, config: Mapping[str, Any]) -> Iterator[tuple[str, Attempt]]:
    dim = ours.spec.head_dim
    scales = {
        f"1/√{dim}, of the size of a head": dim**-0.5,
        "1": 1.0,
        f"1/{dim}": 1 / dim,
    }
    for name in ("query_pre_attn_scalar", "hidden_size", "qk_nope_head_dim"):
        if _is_number(config.get(name)):
            scales[f"1/√{config[name]}, of {name}"] = config[name] ** -0.5
    for name in ("attention_multiplier", "attn_scale", "scaling"):
        if _is_number(config.get(name)):
            scales[f"{config[name]}, {name}"] = float(config[name])
    for said, scale in scales.items():
        yield (
            f"the scores have another scale: {said} in the reference, {ours.spec.scale:.4g} in the plugin: set "
            "AttentionSpec.scale.",
            replace(ours, spec=replace(ours.spec, scale=scale)),
        )


def _other_windows(trace: Trace, ours: Attempt, config: Mapping[str, Any]) -> Iterator[tuple[str, Attempt]]:
    mine = ours.spec.sliding_window
    others = (spec.sliding_window for spec in trace.subject.layers if isinstance(spec, AttentionSpec))
    windows: dict[int | None, str] = dict.fromkeys(others, "that of another layer")
    for named in _numbers(config, "window"):
        windows[int(named)] = "what the config says"
    near: dict[int | None, str] = {
        mine + by: "one token more or less" for by in (-1, 1) if mine is not None and mine + by > 0
    }
    windows |= {None: "all"}
    for window, said in {**near, **windows}.items():
        if window == mine:
            continue
        has = "all tokens" if mine is None else f"a window of {mine}"
        wants = "all tokens" if window is None else f"a window of {window} tokens, itself included ({said})"
        yield (
            f"the sliding window is wrong: a query sees {wants} in the reference, and {has} in the plugin.",
            replace(ours, spec=replace(ours.spec, sliding_window=window)),
        )


def _numbers(config: Mapping[str, Any], part: str) -> list[float]:
    return [value for name, value in config.items() if part in name and _is_number(value) and value > 0]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
