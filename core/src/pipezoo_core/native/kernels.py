"""The kernels of `pipezoo-kernels` as functions of tensors, and whether they can be used here.

The backends that call them live beside the others, in `attention` and `layers`.
"""

from __future__ import annotations

import importlib
import math
import struct
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipezoo_core.errors import InsufficientMemoryError, TensorMismatchError
from pipezoo_core.native.activation import Activation
from pipezoo_core.native.memory_pool import MemoryPool, aligned, aligned_bytes
from pipezoo_core.native.packing import GROUP, Form, Packing, packed_bytes, packed_size, stored_blocks
from pipezoo_core.native.variants import DTYPES, MODULE, PANEL, obstacle_to

__all__ = ["CallObserver", "NativeKernels", "PackedStore", "StateRows", "address_of", "as_integer", "bits"]

_CPU = torch.device("cpu")  # named wherever a tensor is made, because torch's default may be another

_PIECE = 2**28  # bytes of memory that weights share

_POOLED = 2**15  # numbers of a result from which on its memory is kept

# A product that takes about 5 ms, as long as a Python thread may keep the interpreter's lock from others: of so many
# multiplications, or with a weight of so many bytes.
_LONG_PRODUCT, _LONG_READ = 2**29, 2**27


class CallObserver(Protocol):
    """Takes calls of kernels, which are not made then."""

    def add(self, name: str, arguments: tuple[float, ...]) -> None:
        """Notes a call.

        Args:
            name: of the kernel, without the dtype.
            arguments: addresses and whole numbers, and floats that the kernel takes as such.
        """
        ...


class StateRows(Protocol):
    """Whose rows are whose in a step, and where their states are: `recurrence.StateStep`."""

    @property
    def row_offsets(self) -> Tensor:
        """Where each request's rows begin, int64 [B + 1]."""
        ...

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        ...

    @property
    def address(self) -> int:
        """Where the kernels find that and the slots."""
        ...


class PackedStore(Protocol):
    """Has weights that were packed before, or keeps those that are packed now: see `weights.load_cache`."""

    def take(self, name: str, size: int) -> Tensor | None:
        """Returns the next weight, uint8 [size]; None where it has none, and the weight is to be packed."""
        ...

    def add(self, name: str, packed: Tensor) -> None:
        """Is given a weight that was packed."""
        ...


class NativeKernels:
    """One model's kernels. A step can be recorded: see `recording`.

    A kernel reads memory and knows no tensors. So each call is checked here: dtype, device and sizes. A replayed step
    was checked when it was recorded. Of the numbers that are indices, tokens are checked by the kernels, which give NaN
    for one that is not in the vocabulary. Positions and pages are not checked: a `RaggedBatch` has those that the KV
    cache's manager lent.

    All functions raise a `TensorMismatchError` for a tensor that they cannot read, and an `InsufficientMemoryError`.

    Args:
        device: where the model runs.
        dtype: of its weights and activations.

    Attributes:
        obstacle: what stands in the way of using them; None if they can be used.
        observer: takes each call while a step is recorded; None where kernels are run.
        store: of packed weights, while a model is loaded with one; None where all are packed and none is kept.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.obstacle = obstacle_to(device, dtype)
        self.observer: CallObserver | None = None
        self.store: PackedStore | None = None
        self._pool = MemoryPool()
        self._piece, self._used = torch.empty(0, dtype=torch.uint8, device=_CPU), 0
        self._suffix = "" if self.obstacle else f"_{DTYPES[dtype]}"
        self._native: ModuleType | None = None if self.obstacle else importlib.import_module(MODULE)

    def pack(self, weight: Tensor, bits: int | None = None, form: Form = Form.plain) -> Tensor:
        """Returns a weight [out_features, in_features] in the order that `linear` reads.

        While a step is recorded, nothing is computed here either: the memory alone is there.

        Args:
            weight: in_features must be even, or a multiple of `GROUP` to be quantized. In the model's dtype, or to be
                quantized also in float32. On the meta device where `store` has it packed.
            bits: 8 or 4 to quantize, see `layers.quantized`; None to keep the numbers.
            form: that it will be used in.
        """
        unit = 2 if bits is None else GROUP
        is_known = weight.dtype is self.dtype or (bits is not None and weight.dtype in DTYPES)
        is_gated = form is Form.gated
        is_whole = not (weight.shape[1] % unit or (is_gated and weight.shape[0] % PANEL))
        if not (is_known and is_whole and self._can_pack(weight)):
            sizes = f"[{f'a multiple of {PANEL}' if is_gated else 'any'}, a multiple of {unit}]"
            raise _mismatch("the packing of a weight", weight, f"{self.dtype} {sizes} on the CPU")
        packing = Packing.of_bits(bits)
        kernel = f"{_of_packing('pack', packing)}_{DTYPES[weight.dtype]}"
        rows, columns = weight.shape
        return self._packed(kernel, weight, (rows, columns), packing, form, packed_size(weight, packing))

    def pack_stored(self, type_name: str, rows: Tensor, form: Form = Form.plain) -> Tensor:
        """Returns a weight whose rows a file has quantized, in the order that `linear` reads, with the same numbers.

        Args:
            type_name: of GGUF's types one that `Packing.of_type` knows.
            rows: uint8 [out_features, bytes], as in the file: whole blocks. On the meta device where `store` has them
                packed.
            form: that it will be used in.
        """
        packing, block, size, row_bytes = stored_blocks(type_name)
        is_gated = form is Form.gated
        is_known = rows.dtype is torch.uint8 and self._can_pack(rows) and rows.dim() == 2
        if not is_known or (rows.shape[1] - row_bytes) % size or (is_gated and rows.shape[0] % PANEL):
            columns = f"a multiple of {size}" + (f" and {row_bytes} more" if row_bytes else "")
            sizes = f"[{f'a multiple of {PANEL}' if is_gated else 'any'}, {columns}]"
            raise _mismatch(f"the packing of a file's rows of {type_name}", rows, f"torch.uint8 {sizes} on the CPU")
        shape = (rows.shape[0], (rows.shape[1] - row_bytes) // size * block)
        return self._packed(f"pack_{type_name.lower()}", rows, shape, packing, form, packed_bytes(shape, packing))

    def _can_pack(self, weight: Tensor) -> bool:
        return weight.is_cpu or (weight.is_meta and self.store is not None)

    def _packed(
        self, kernel: str, weight: Tensor, shape: tuple[int, int], packing: Packing, form: Form, size: int
    ) -> Tensor:
        """Returns a weight that the store has, or that a kernel packs now."""
        name = f"{packing.name} {form.name} {shape[0]} x {shape[1]}"
        if self.store is not None and (found := self.store.take(name, size)) is not None:
            return found
        weight, packed = weight.contiguous(), self._allocate(size)
        if self.observer is None:
            _call(getattr(self._native, kernel), weight.data_ptr(), packed.data_ptr(), *shape, form)
            if self.store is not None:
                self.store.add(name, packed)
        return packed

    def _allocate(self, size: int) -> Tensor:
        """Returns bytes of a piece of memory that is shared with other weights, large enough for pages of 2 MiB.

        Weights are read from end to end at every step: with pages of 4 KiB that stops at each of them to look up the
        next one.
        """
        start = aligned(self._used)
        if start + size > len(self._piece):
            self._piece, start = torch.from_numpy(aligned_bytes(max(size, _PIECE))), 0
        self._used = start + size
        return self._piece[start : self._used]

    def linear(
        self,
        x: Tensor,
        packed: Tensor,
        bias: Tensor | None,
        shape: tuple[int, int],
        *,
        packing: Packing = Packing.none,
        form: Form = Form.plain,
        activation: Activation = Activation.silu,
    ) -> Tensor:
        """Returns `x Wᵀ + b`: [..., in_features] to [..., out_features]; gated to [..., out_features / 2].

        Args:
            x: rows.
            packed: W, as `pack` or `pack_stored` returned it for this form.
            bias: b, or None.
            shape: of W: out_features, in_features.
            packing: what its numbers are.
            form: as it was packed.
            activation: of the gate, where the form is gated.
        """
        out_features, in_features = shape
        self._check("linear", x, in_features)
        x = x.contiguous()
        size = out_features // 2 if form is Form.gated else out_features
        y = self._empty((*x.shape[:-1], size), torch.float32 if form is Form.wide else x.dtype)
        addresses = (x.data_ptr(), packed.data_ptr(), address_of(bias), y.data_ptr())
        rows = x.numel() // in_features
        is_long = max(rows * x.shape[-1] * out_features / _LONG_PRODUCT, packed.nbytes / _LONG_READ) > 1
        sizes = (rows, in_features, out_features)
        self._run(_of_packing("linear", packing), *addresses, *sizes, form, activation, is_long=is_long)
        return y

    def multiply_heads(self, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        """Returns each head's `x Wᵀ`, [T, heads, in_features] to [T, heads, out_features], contiguous.

        Args:
            x: rows and heads are read where they lie in another tensor's rows.
            packed: the heads' weights, [heads · out_features, in_features] as one, as `pack` returned it.
            shape: of one of them: out_features, a multiple of `PANEL`, and in_features.
        """
        out_features, in_features = shape
        self._check("multiply_heads", x, in_features)
        if x.dim() != 3 or packed.nbytes != x.shape[1] * out_features * in_features * x.itemsize:
            raise _mismatch("multiply_heads", x, f"[T, heads, {in_features}], the heads of the weight")
        x = x if x.stride(-1) == 1 else x.contiguous()
        rows, heads = x.shape[:2]
        y = self._empty((rows, heads, out_features), x.dtype)
        addresses = (x.data_ptr(), x.stride(0), x.stride(1), packed.data_ptr(), y.data_ptr())
        is_long = rows * heads * in_features * out_features > _LONG_PRODUCT
        self._run("multiply_heads", *addresses, rows, heads, in_features, out_features, is_long=is_long)
        return y

    def packed_rows(self, indices: Tensor, packed: Tensor, shape: tuple[int, int], packing: Packing) -> Tensor:
        """Returns rows of a packed weight of this shape: int64 [T] to [T, in_features]; NaN for what is no row."""
        indices, (num_rows, size) = _integers("packed_rows", indices), shape
        y = self._empty((len(indices), size), self.dtype)
        addresses = (indices.data_ptr(), packed.data_ptr(), y.data_ptr())
        self._run(_of_packing("packed_rows", packing), *addresses, len(indices), size, num_rows)
        return y

    def rows(self, x: Tensor, indices: Tensor) -> Tensor:
        """Returns rows of a matrix: int64 [T] to [T, ...]."""
        return torch.index_select(x, 0, indices, out=self._empty((len(indices), *x.shape[1:]), x.dtype))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        """Returns `x / sqrt(mean(x²) + eps) · (weight + offset)` over the last dimension, contiguous.

        Rows, and the heads of rows, are read where they lie in another tensor's rows.
        """
        size = weight.shape[0]
        self._check("rms_norm", x, size)
        self._check("rms_norm's weight", weight, size)
        shape, (x, heads, stride) = x.shape, _rows(x)
        y = self._empty(shape, x.dtype)
        addresses = (x.data_ptr(), weight.data_ptr(), y.data_ptr())
        self._run("rms_norm", *addresses, x.numel() // size, size, heads, stride, eps, offset)
        return y

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, size: int) -> Tensor:
        """Returns `(x - mean(x)) / sqrt(variance(x) + eps) · weight + bias` over the last dimension, of this size.

        Contiguous; `x` is read as by `rms_norm`.
        """
        self._check("layer_norm", x, size)
        for name, parameter in (("weight", weight), ("bias", bias)):
            if parameter is not None:
                self._check(f"layer_norm's {name}", parameter, size)
        shape, (x, heads, stride) = x.shape, _rows(x)
        y = self._empty(shape, x.dtype)
        addresses = (x.data_ptr(), address_of(weight), address_of(bias), y.data_ptr())
        self._run("layer_norm", *addresses, x.numel() // size, size, heads, stride, eps)
        return y

    def activate(self, x: Tensor, activation: Activation) -> Tensor:
        """Returns an activation of each number."""
        assert activation is not Activation.clamped, "it is of a gate and what that lets through"
        self._check("activate", x, x.shape[-1])
        x = x.contiguous()
        y = self._empty(x.shape, x.dtype)
        self._run("activate", x.data_ptr(), y.data_ptr(), 1, x.numel(), x.numel(), activation)
        return y

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """Returns `activation(gate) · up`: [..., 2 · size], gate first, to [..., size]."""
        size = gate_up.shape[-1] // 2
        self._check("gated", gate_up, 2 * size)
        gate_up = gate_up.contiguous()
        y = self._empty((*gate_up.shape[:-1], size), gate_up.dtype)
        self._run("gated", gate_up.data_ptr(), y.data_ptr(), y.numel() // size, size, activation)
        return y

    def rotary_angles(self, positions: Tensor, frequencies: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines of `positions · frequencies`, times `scaling`: two [T, 2 · len(frequencies)]."""
        positions = _integers("rotary_angles", positions)
        _check_float32("rotary_angles", frequencies, (len(frequencies),))
        shape = (len(positions), 2 * len(frequencies))
        cos, sin = (torch.empty(shape, dtype=self.dtype, device=_CPU) for _ in range(2))  # too small for the pool
        addresses = (positions.data_ptr(), frequencies.data_ptr(), cos.data_ptr(), sin.data_ptr())
        self._run("rotary_angles", *addresses, len(positions), len(frequencies), scaling)
        return cos, sin

    def attend(
        self,
        qkv: tuple[Tensor, Tensor | None, Tensor | None],
        rotation: tuple[Tensor, Tensor] | None,
        pages: tuple[Tensor, Tensor | None],
        descriptions: tuple[int, int],
        sinks: Tensor | None,
        width: int,
    ) -> Tensor:
        """Returns what the queries see, and writes keys and values into their pages; see `attention.native`.

        Args:
            qkv: queries, keys and values, [T, heads · numbers] of each. `Attention` checks that they are of the step's
                sizes and of one dtype. None for keys and values that are in the pages already, and for values in keys.
            rotation: cosines and sines [T, rotary_dim], or None.
            pages: the layer's keys and values; None for values that are the first numbers of the keys.
            descriptions: addresses of the step's description and of the layer's.
            sinks: [num_heads], or None.
            width: numbers per row of the result.
        """
        q, k, v = (x if x is None or x.stride(-1) == 1 else x.contiguous() for x in qkv)
        assert q is not None, "queries are never in the pages"
        for x in (q, k, v, sinks):
            if x is not None:
                self._check("attend", x, x.shape[-1])
        rotary_dim = 0
        if rotation is not None:
            rotation = (rotation[0].contiguous(), rotation[1].contiguous())
            rotary_dim = rotation[0].shape[-1]
            if rotary_dim % 2 or rotary_dim == 0:
                raise _mismatch("attend", rotation[0], "a rotation of pairs of numbers")
        sinks = None if sinks is None else sinks.contiguous()
        out = self._empty((q.shape[0], width), q.dtype)
        strided = [number for x in (q, k, v) for number in ((0, 0) if x is None else (x.data_ptr(), x.stride(0)))]
        cos, sin = (0, 0) if rotation is None else (rotation[0].data_ptr(), rotation[1].data_ptr())
        written = (pages[0].data_ptr(), address_of(pages[1]), out.data_ptr())
        self._run("attend", *strided, cos, sin, rotary_dim, *written, *descriptions, address_of(sinks))
        return out

    def short_convolution(
        self, x: Tensor, taps: Tensor, bias: Tensor | None, state: Tensor, step: StateRows, *, is_activated: bool
    ) -> Tensor:
        """Returns each channel's convolution with the rows before, [T, size]; see `recurrence.short_convolution`.

        Args:
            x: [T, size], rows of a wider tensor among them.
            taps: [taps, size], contiguous; the last one is the row's own.
            bias: [size], or None.
            state: float32 [num_slots, taps - 1, size], written.
            step: of the rows.
            is_activated: by silu.
        """
        num_taps, size = taps.shape
        self._check("short_convolution", x, size)
        self._check("short_convolution's taps", taps, size)
        if bias is not None:
            self._check("short_convolution's bias", bias, size)
            if bias.dim() != 1:
                raise _mismatch("short_convolution's bias", bias, f"[{size}]")
            bias = bias.contiguous()
        self._check_states("short_convolution", x, state, (num_taps - 1, size), step)
        x, taps = x if x.stride(-1) == 1 else x.contiguous(), taps.contiguous()
        y = self._empty(x.shape, x.dtype)
        addresses = (x.data_ptr(), x.stride(0), taps.data_ptr(), address_of(bias), state.data_ptr(), y.data_ptr())
        self._run("short_convolution", *addresses, size, num_taps, int(is_activated), step.address)
        return y

    def gated_delta_rule(
        self,
        qkv: Tensor,
        gates: tuple[Tensor, Tensor],
        decay: tuple[Tensor, Tensor],
        state: Tensor,
        step: StateRows,
        num_key_heads: int,
    ) -> Tensor:
        """Returns what the rows read of the states that they change, [T, heads · value_size]; see `recurrence`.

        Args:
            qkv: [T, 2 · num_key_heads · key_size + heads · value_size]: queries, keys and values.
            gates: of decay and strength, [T, heads] each.
            decay: the logarithm of its rate and its bias, float32 [heads] each.
            state: float32 [num_slots, heads, key_size, value_size], written.
            step: of the rows.
            num_key_heads: heads of queries, and as many of keys.
        """
        heads, key_size, value_size = state.shape[1:]
        if num_key_heads < 1 or heads % num_key_heads:
            raise _mismatch("gated_delta_rule's state", state, f"heads that {num_key_heads} key heads serve evenly")
        self._check("gated_delta_rule", qkv, 2 * num_key_heads * key_size + heads * value_size)
        self._check_states("gated_delta_rule", qkv, state, (heads, key_size, value_size), step)
        for gate in gates:
            self._check("gated_delta_rule's gates", gate, heads)
            if gate.shape != (len(qkv), heads):
                raise _mismatch("gated_delta_rule's gates", gate, f"{[len(qkv), heads]}, as many rows as queries")
        for parameter in decay:
            _check_float32("gated_delta_rule's decay", parameter, (heads,))
        qkv, a, b = (x if x.stride(-1) == 1 else x.contiguous() for x in (qkv, *gates))
        y = self._empty((len(qkv), heads * value_size), qkv.dtype)
        strided = [number for x in (qkv, a, b) for number in (x.data_ptr(), x.stride(0))]
        addresses = (*(x.data_ptr() for x in (*decay, state, y)), step.address)
        self._run("gated_delta_rule", *strided, *addresses, num_key_heads, heads, key_size, value_size)
        return y

    def gated_rms_norm(self, x: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
        """Returns `x / sqrt(mean(x²) + eps) · weight · silu(gate)` of each head, [T, heads · size].

        Args:
            x: [T, heads · size].
            weight: [size].
            gate: as `x`; rows of a wider tensor among them.
            eps: added to the mean.
        """
        (rows, width), size = x.shape, weight.shape[0]
        if width % size:
            raise _mismatch("gated_rms_norm's weight", weight, f"a divisor of {width} numbers, those of whole heads")
        for name, given, numbers in (("", x, width), ("'s weight", weight, size), ("'s gate", gate, width)):
            self._check(f"gated_rms_norm{name}", given, numbers)
        if len(gate) != rows:
            raise _mismatch("gated_rms_norm's gate", gate, f"{rows} rows")
        x, weight, gate = x.contiguous(), weight.contiguous(), gate if gate.stride(-1) == 1 else gate.contiguous()
        y = self._empty(x.shape, x.dtype)
        addresses = (x.data_ptr(), weight.data_ptr(), gate.data_ptr(), y.data_ptr())
        self._run("gated_rms_norm", *addresses, rows, width // size, size, gate.stride(0), eps)
        return y

    def route(self, x: Tensor, layer: int, sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Returns each row's experts, int64 [T, top_k], and their weights, float32 [T, top_k]; see `layers.router`.

        Args:
            x: [T, hidden].
            layer: the address of its description.
            sizes: hidden, num_experts, top_k.
        """
        hidden, num_experts, top_k = sizes
        self._check("route", x, hidden)
        x = x.contiguous()
        rows = x.numel() // hidden
        logits = self._empty((rows, num_experts), torch.float32)
        weights = torch.empty((rows, top_k), dtype=torch.float32, device=_CPU)  # too small for the pool
        indices = torch.empty((rows, top_k), dtype=torch.int64, device=_CPU)
        self._run("route", *(part.data_ptr() for part in (x, logits, indices, weights)), rows, layer)
        return indices, weights

    def experts(
        self,
        x: Tensor,
        indices: Tensor,
        weights: Tensor,
        layer: int,
        sizes: tuple[int, int, int],
        packed: tuple[int, int],
    ) -> Tensor:
        """Returns the weighted sums of what their experts make of rows; see `layers.native_experts`.

        Args:
            x: [T, hidden].
            indices: of each row's experts, int64 [T, top_k].
            weights: of these, float32 [T, top_k].
            layer: the address of its description.
            sizes: hidden, numbers per row inside an expert, top_k.
            packed: how many experts the layer has here, and the bytes of one's weights.
        """
        hidden, inner, top_k = sizes
        self._check("experts", x, hidden)
        rows = x.numel() // hidden
        for given, dtype in ((indices, torch.int64), (weights, torch.float32)):
            if given.dtype is not dtype or given.shape != (rows, top_k) or not given.is_cpu:
                raise _mismatch("experts", given, f"{dtype} {[rows, top_k]} on the CPU")
        x, indices, weights = x.contiguous(), indices.contiguous(), weights.contiguous()
        gated, products = (self._empty((rows * top_k, size), x.dtype) for size in (inner, hidden))
        y = self._empty((rows, hidden), x.dtype)
        addresses = (part.data_ptr() for part in (x, indices, weights, gated, products, y))
        count, num_bytes = packed
        read = min(rows * top_k, count) * num_bytes  # at most: rows may have chosen the same experts
        is_long = max(rows * top_k * 3 * hidden * inner / _LONG_PRODUCT, read / _LONG_READ) > 1
        self._run("experts", *addresses, rows, layer, is_long=is_long)
        return y

    def address(self, name: str) -> int:
        """Returns where a kernel lies, for a recorded step."""
        assert self._native is not None
        address: int = self._native.addresses[name + self._suffix]
        return address

    def replay(self, program: int, num_calls: int) -> None:
        """Runs a recorded step: `num_calls` rows of a kernel's address and its arguments."""
        assert self._native is not None
        _call(self._native.replay, program, num_calls)

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Returns a tensor for a result. While a step is recorded, torch makes it, so that its dispatcher sees it."""
        if self.observer is not None or math.prod(shape) < _POOLED:
            return torch.empty(shape, dtype=dtype, device=_CPU)
        return self._pool.empty(shape, dtype)

    def _check(self, kernel: str, x: Tensor, size: int) -> None:
        """Raises where the kernel would take a tensor's numbers for something else, or read beyond them."""
        if x.dtype is not self.dtype or x.shape[-1] != size or not x.is_cpu:
            raise _mismatch(kernel, x, f"{self.dtype} [..., {size}] on the CPU")

    def _check_states(self, kernel: str, x: Tensor, state: Tensor, shape: tuple[int, ...], step: StateRows) -> None:
        """Raises for states of another form, for rows of another, and for another number of them than the step has."""
        _check_float32(f"{kernel}'s state", state, (len(state), *shape))
        if x.dim() != 2:
            raise _mismatch(kernel, x, f"[T, {x.shape[-1]}]")
        if self.observer is None and not (len(x) == step.num_rows and step.row_offsets.is_cpu):
            raise _mismatch(kernel, x, f"{step.num_rows} rows, those of the step, which lies on the CPU")

    def _run(self, name: str, *arguments: float, is_long: bool = False) -> None:
        """Runs a kernel; a long one as a program of its own, during which other Python threads run."""
        if self.observer is not None:
            self.observer.add(name, arguments)
        elif is_long:
            call = np.array([self.address(name), *map(as_integer, arguments)], dtype=np.int64)
            self.replay(call.ctypes.data, 1)
        else:
            _call(getattr(self._native, name + self._suffix), *arguments)


def _call(kernel: Callable[..., None], *arguments: float) -> None:
    try:
        kernel(*arguments)
    except MemoryError as error:
        raise InsufficientMemoryError(
            "a kernel found no memory for what it works with", cure="Load with less kv_cache_memory, or free memory."
        ) from error


def _mismatch(kernel: str, x: Tensor, allowed: str) -> TensorMismatchError:
    return TensorMismatchError(
        f"the kernel {kernel!r} was given a tensor that it does not compute with",
        found=f"{x.dtype} {list(x.shape)} on {x.device}",
        allowed=allowed,
        cure="Check the sizes and dtypes in the model's module.",
    )


def _check_float32(kernel: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.dtype is not torch.float32 or x.shape != shape or not (x.is_cpu and x.is_contiguous()):
        raise _mismatch(kernel, x, f"torch.float32 {list(shape)}, contiguous, on the CPU")


def _integers(kernel: str, x: Tensor) -> Tensor:
    if x.dtype is not torch.int64 or x.dim() != 1 or not x.is_cpu:
        raise _mismatch(kernel, x, "torch.int64 [T] on the CPU")
    return x.contiguous()


def _rows(x: Tensor) -> tuple[Tensor, int, int]:
    """Returns rows that a kernel can read, how many of them are side by side, and the stride from there on.

    Of qkv with 4 query heads and 8 heads in all, of 32 numbers, the queries [T, 4, 32] lie 4 by 4, 256 numbers apart.
    Leading dimensions of 1 are left out.
    """
    size = x.shape[-1]
    while x.dim() > 2 and x.shape[0] == 1:
        x = x[0]
    if x.is_contiguous() or x.stride(-1) != 1 or x.dim() > 3:
        return x.contiguous(), 1, size
    if x.dim() == 3 and x.stride(1) == size:
        return x, x.shape[1], x.stride(0)
    if x.dim() == 2:
        return x, 1, x.stride(0)
    return x.contiguous(), 1, size


def _of_packing(kernel: str, packing: Packing) -> str:
    return kernel if packing is Packing.none else f"{kernel}_{packing.name}"


def address_of(x: Tensor | None) -> int:
    """Returns where a tensor's numbers begin; 0 where there is none."""
    return 0 if x is None else x.data_ptr()


def as_integer(argument: float) -> int:
    """Returns a kernel's argument in the form in which a recorded step has it."""
    return bits(argument) if isinstance(argument, float) else argument


def bits(number: float) -> int:
    """Returns a float64's bits as an integer, the form in which kernels that read arguments from memory want it."""
    integer: int = struct.unpack("q", struct.pack("d", number))[0]
    return integer
