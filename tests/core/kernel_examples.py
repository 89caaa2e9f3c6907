"""A right call of each function of the kernels, with all tensors that it can be given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipezoo_core.attention import AttentionSpec, NativeAttention
from pipezoo_core.kv_cache import RaggedBatch
from pipezoo_core.layers import Router, Routing
from pipezoo_core.layers.native_experts import NativeExperts
from pipezoo_core.layers.native_product import NativeProduct
from pipezoo_core.native import Activation, Form, NativeKernels, Packing
from pipezoo_core.native.packing import _OF_TYPES
from pipezoo_core.recurrence import StateStep

CPU = torch.device("cpu")
ROWS = "rows"


@dataclass(frozen=True)
class Given:
    """A tensor of a call.

    Attributes:
        contiguous: whether it has to be; else its numbers may lie anywhere, and are copied where a kernel wants it.
        free: dimensions that may have any size; `ROWS` for all but the last one, of which there may be any number, and
            None where all of them are free.
        dtypes: that it may have besides its own; None for any.
    """

    x: torch.Tensor
    free: Any = frozenset()
    dtypes: Any = frozenset()
    contiguous: bool = False


def whole(x: torch.Tensor, free: Any = frozenset()) -> Given:
    """A tensor that has to be contiguous."""
    return Given(x, free, contiguous=True)


@dataclass(frozen=True)
class Example:
    """A call of a function, by the names of its tensors."""

    function: str
    call: Callable[..., Any]
    given: dict[str, Given]


def examples(dtype: torch.dtype) -> tuple[NativeKernels, list[Example]]:
    """Returns kernels and calls of them."""
    k, generator = NativeKernels(CPU, dtype), torch.Generator().manual_seed(3)

    def x(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def wide(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def heads(x, packed):
        k.check_packed(packed, None, (192, 32), Packing.none)
        return k.multiply_heads(x, packed, (64, 32))

    step = StateStep.of(*(torch.tensor(numbers) for numbers in ([0, 1, 3], [0, -1], [0, 1])))
    first = frozenset({0})
    calls = [
        Example("multiply_heads", heads,
                {"x": Given(x(5, 3, 32), first), "packed": whole(k.pack(x(192, 32)))}),
        Example("rows", k.rows, {"x": Given(x(6, 4), None, None), "indices": Given(torch.tensor([3, 1]), first)}),
        Example("rms_norm", lambda x, weight: k.rms_norm(x, weight, 1e-6),
                {"x": Given(x(5, 34), ROWS), "weight": whole(x(34))}),
        Example("layer_norm", lambda x, weight, bias: k.layer_norm(x, weight, bias, 1e-6, 34),
                {"x": Given(x(5, 34), ROWS), "weight": whole(x(34)), "bias": whole(x(34))}),
        Example("activate", lambda x: k.activate(x, Activation.gelu), {"x": Given(x(5, 34), None)}),
        Example("gated", lambda x: k.gated(x, Activation.silu), {"x": Given(x(5, 34), ROWS)}),
        Example("rotary_angles", lambda positions, frequencies: k.rotary_angles(positions, frequencies, 1.5),
                {"positions": Given(torch.arange(5), first), "frequencies": whole(wide(16), first)}),
        Example("short_convolution", lambda x, taps, bias, state: k.short_convolution(
                    x, taps, bias, state, step, is_activated=True),
                {"x": Given(x(3, 20)), "taps": Given(x(4, 20)), "bias": Given(x(20)),
                 "state": whole(wide(2, 3, 20), first)}),
        Example("gated_delta_rule", lambda qkv, a, b, log, bias, state: k.gated_delta_rule(
                    qkv, (a, b), (log, bias), state, step, 2),
                {"qkv": Given(x(3, 144)), "a": Given(x(3, 4)), "b": Given(x(3, 4)), "log": whole(wide(4)),
                 "bias": whole(wide(4)), "state": whole(wide(2, 4, 16, 20), first)}),
        Example("selective_scan", lambda xbc, dt, of_heads, state: k.selective_scan(
                    xbc, dt, of_heads, (0.0, 1.0), state, step, 2),
                {"xbc": Given(x(3, 144)), "dt": Given(x(3, 4)), "of_heads": whole(wide(3, 4)),
                 "state": whole(wide(2, 4, 16, 20), first)}),
        *(Example("gated_rms_norm", lambda x, weight, gate, groups=groups: k.gated_rms_norm(
                      x, weight, gate, 1e-6, groups),
                  {"x": Given(x(3, 64)), "weight": whole(x(size)), "gate": Given(x(3, 64))})
          for groups, size in ((None, 32), (2, 64))),
        *(Example("pack", lambda weight, bits=bits, form=form: k.pack(weight, bits, form),
                  {"weight": Given(weight, frozenset() if form is Form.gated else first, dtypes)})
          for form in (Form.plain, Form.gated) for bits, weight, dtypes in (
              (None, x(64, 32), ()), (8, x(64, 32), (torch.float32, torch.bfloat16)),
              (4, x(64, 32), (torch.float32, torch.bfloat16)))),
    ]  # fmt: skip
    return k, [*calls, *_of_packings(k, x), *_of_experts(k, x, wide), *_of_attention(k, x)]


def _of_packings(k: NativeKernels, x: Callable[..., torch.Tensor]) -> list[Example]:
    """Of rows of a file, of all kinds, and of weights that were packed otherwise."""

    def product(x, packed, bias, packing):
        k.check_packed(packed, bias, (37, 256), packing)
        return k.linear(x, packed, bias, (37, 256), packing=packing)

    def taken(indices, packed, packing):
        k.check_packed(packed, None, (37, 256), packing)
        return k.packed_rows(indices, packed, (37, 256), packing)

    calls, packed = [], {Packing.none: k.pack(x(37, 256)), Packing.int4: k.pack(x(37, 256), 4)}
    for name, stored in _OF_TYPES.items():
        rows = torch.zeros(37, stored.row_bytes + 256 // stored.block * stored.block_bytes, dtype=torch.uint8)
        calls.append(Example("pack_stored", lambda rows, name=name: k.pack_stored(name, rows),
                             {"rows": Given(rows, frozenset({0}))}))  # fmt: skip
        packed.setdefault(stored.packing, k.pack_stored(name, rows))
    for packing, weight in packed.items():
        calls += [
            Example("linear", lambda x, packed, bias, packing=packing: product(x, packed, bias, packing),
                    {"x": Given(x(5, 256), ROWS), "packed": whole(weight), "bias": whole(x(37))}),
            Example("packed_rows", lambda indices, packed, packing=packing: taken(indices, packed, packing),
                    {"indices": Given(torch.tensor([3, 36, 0]), frozenset({0})), "packed": whole(weight)}),
            Example("check_packed", lambda packed, bias, packing=packing: k.check_packed(
                        packed, bias, (37, 256), packing),
                    {"packed": whole(weight), "bias": whole(x(37))}),
        ]  # fmt: skip
    return calls


def _of_experts(k: NativeKernels, x: Callable[..., torch.Tensor], wide: Callable[..., torch.Tensor]) -> list[Example]:
    router = Router(64, Routing(num_experts=4, top_k=2))
    router.weight.data = wide(4, 64)
    router.compute_with(k)
    gate_ups = [NativeProduct(k, x(64, 64), None, None, Form.gated) for _ in range(4)]
    experts = NativeExperts(
        gate_ups, [NativeProduct(k, x(64, 32), None) for _ in range(4)], activation=Activation.silu, first=0, top_k=2
    )
    return [
        Example("route", lambda x: router(x), {"x": Given(x(3, 64), frozenset({0}))}),
        Example("experts", experts, {"x_TH": Given(x(3, 64)), "weights_TK": Given(wide(3, 2)),
                                     "indices_TK": Given(torch.tensor([[0, 3], [1, 2], [3, 1]]))}),
    ]  # fmt: skip


def _of_attention(k: NativeKernels, x: Callable[..., torch.Tensor]) -> list[Example]:
    spec = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=64, value_dim=32, scale=0.2, has_sinks=True)
    attention = NativeAttention(spec, k, 32)
    plan = attention.plan(RaggedBatch([2, 1], [0, 0], [2, 1], [[[0], [1]]]), 32, CPU, 0)

    def attend(q, k, v, cos, sin, keys, values, sinks):
        return attention.attend(q, k, v, keys, values, plan, (cos, sin), sinks)

    pages = [torch.zeros(shape, dtype=k.dtype) for shape in attention.page_shapes(2, 32) if shape is not None]
    return [
        Example("attend", attend,
                {"q": Given(x(3, 256)), "k": Given(x(3, 128)), "v": Given(x(3, 64)), "cos": Given(x(3, 64)),
                 "sin": Given(x(3, 64)), "keys": whole(pages[0], frozenset({0})),
                 "values": whole(pages[1], frozenset({0})), "sinks": whole(x(4))}),
    ]  # fmt: skip
