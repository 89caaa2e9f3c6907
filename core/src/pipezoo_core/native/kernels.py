"""The kernels of `pipezoo-kernels` as functions of tensors, and whether they can be used here.

The backends that call them live beside the others, in `attention` and `layers`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipezoo_core.native.activation import Activation
from pipezoo_core.native.attention_kernels import AttentionKernels
from pipezoo_core.native.calls import CPU, address_of, check_tensor, is_plain, mismatch, of_packing, shape_of
from pipezoo_core.native.packing import Form, Packing
from pipezoo_core.native.packing_kernels import PackingKernels
from pipezoo_core.native.recurrent_kernels import RecurrentKernels
from pipezoo_core.native.variants import PANEL

__all__ = ["NativeKernels"]

# A product that takes about 5 ms, as long as a Python thread may keep the interpreter's lock from others: of so many
# multiplications, or with a weight of so many bytes.
_LONG_PRODUCT, _LONG_READ = 2**29, 2**27


class NativeKernels(AttentionKernels, PackingKernels, RecurrentKernels):
    """One model's kernels.

    All functions raise a `TensorMismatchError` for a tensor that they cannot read, and an `InsufficientMemoryError`.
    Packed weights and their biases are those that `check_packed` has seen.
    """

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
        self._check_rows("linear", x, in_features)
        x = x.contiguous()
        size = out_features // 2 if form is Form.gated else out_features
        y = self._empty((*x.shape[:-1], size), torch.float32 if form is Form.wide else x.dtype)
        addresses = (x.data_ptr(), packed.data_ptr(), address_of(bias), y.data_ptr())
        rows = x.numel() // in_features
        is_long = max(rows * x.shape[-1] * out_features / _LONG_PRODUCT, packed.nbytes / _LONG_READ) > 1
        sizes = (rows, in_features, out_features)
        self._run(of_packing("linear", packing), *addresses, *sizes, form, activation, is_long=is_long)
        return y

    def multiply_heads(self, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        """Returns each head's `x Wᵀ`, [T, heads, in_features] to [T, heads, out_features], contiguous.

        Args:
            x: rows and heads are read where they lie in another tensor's rows.
            packed: the heads' weights, [heads · out_features, in_features] as one, as `pack` returned it.
            shape: of one of them: out_features, a multiple of `PANEL`, and in_features.
        """
        out_features, in_features = shape
        rows, heads, _ = shape_of("multiply_heads", x, 3)
        self._check_rows("multiply_heads", x, in_features)
        if out_features % PANEL or packed.nbytes != heads * out_features * in_features * x.itemsize:
            raise mismatch("multiply_heads", x, f"[T, heads, {in_features}], the heads of the weight")
        x = x if x.stride(-1) == 1 else x.contiguous()
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
        self._run(of_packing("packed_rows", packing), *addresses, len(indices), size, num_rows)
        return y

    def rows(self, x: Tensor, indices: Tensor) -> Tensor:
        """Returns rows of a matrix: int64 [T] to [T, ...]."""
        if not is_plain(x):
            raise mismatch("rows", x, "a plain tensor on the CPU")
        indices = _integers("rows", indices)
        return torch.index_select(x, 0, indices, out=self._empty((len(indices), *x.shape[1:]), x.dtype))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        """Returns `x / sqrt(mean(x²) + eps) · (weight + offset)` over the last dimension, contiguous.

        Rows, and the heads of rows, are read where they lie in another tensor's rows.
        """
        size = weight.numel()
        self._check_rows("rms_norm", x, size)
        self._check("rms_norm's weight", weight, size, contiguous=True)
        shape, (x, heads, stride) = x.shape, _rows(x)
        y = self._empty(shape, x.dtype)
        addresses = (x.data_ptr(), weight.data_ptr(), y.data_ptr())
        self._run("rms_norm", *addresses, x.numel() // size, size, heads, stride, eps, offset)
        return y

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, size: int) -> Tensor:
        """Returns `(x - mean(x)) / sqrt(variance(x) + eps) · weight + bias` over the last dimension, of this size.

        Contiguous; `x` is read as by `rms_norm`.
        """
        self._check_rows("layer_norm", x, size)
        for name, parameter in (("weight", weight), ("bias", bias)):
            if parameter is not None:
                self._check(f"layer_norm's {name}", parameter, size, contiguous=True)
        shape, (x, heads, stride) = x.shape, _rows(x)
        y = self._empty(shape, x.dtype)
        addresses = (x.data_ptr(), address_of(weight), address_of(bias), y.data_ptr())
        self._run("layer_norm", *addresses, x.numel() // size, size, heads, stride, eps)
        return y

    def activate(self, x: Tensor, activation: Activation) -> Tensor:
        """Returns an activation of each number."""
        assert activation is not Activation.clamped, "it is of a gate and what that lets through"
        if x.dtype is not self.dtype or not is_plain(x):
            raise mismatch("activate", x, f"{self.dtype} on the CPU")
        x = x.contiguous()
        y = self._empty(x.shape, x.dtype)
        self._run("activate", x.data_ptr(), y.data_ptr(), 1, x.numel(), x.numel(), activation)
        return y

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """Returns `activation(gate) · up`: [..., 2 · size], gate first, to [..., size]."""
        size = sum(gate_up.shape[-1:]) // 2
        self._check_rows("gated", gate_up, 2 * size)
        gate_up = gate_up.contiguous()
        y = self._empty((*gate_up.shape[:-1], size), gate_up.dtype)
        self._run("gated", gate_up.data_ptr(), y.data_ptr(), y.numel() // size, size, activation)
        return y

    def rotary_angles(self, positions: Tensor, frequencies: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines of `positions · frequencies`, times `scaling`: two [T, 2 · len(frequencies)]."""
        positions = _integers("rotary_angles", positions)
        check_tensor("rotary_angles", frequencies, torch.float32, (frequencies.numel(),), contiguous=True)
        shape = (len(positions), 2 * len(frequencies))
        cos, sin = (torch.empty(shape, dtype=self.dtype, device=CPU) for _ in range(2))  # too small for the pool
        addresses = (positions.data_ptr(), frequencies.data_ptr(), cos.data_ptr(), sin.data_ptr())
        self._run("rotary_angles", *addresses, len(positions), len(frequencies), scaling)
        return cos, sin

    def route(self, x: Tensor, layer: int, sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Returns each row's experts, int64 [T, top_k], and their weights, float32 [T, top_k]; see `layers.router`.

        Args:
            x: [T, hidden].
            layer: the address of its description.
            sizes: hidden, num_experts, top_k.
        """
        hidden, num_experts, top_k = sizes
        self._check("route", x, *x.shape[:1], hidden)
        x, rows = x.contiguous(), len(x)
        logits = self._empty((rows, num_experts), torch.float32)
        weights = torch.empty((rows, top_k), dtype=torch.float32, device=CPU)  # too small for the pool
        indices = torch.empty((rows, top_k), dtype=torch.int64, device=CPU)
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
        self._check("experts", x, *x.shape[:1], hidden)
        rows = len(x)
        for given, dtype in ((indices, torch.int64), (weights, torch.float32)):
            check_tensor("experts", given, dtype, (rows, top_k))
        x, indices, weights = x.contiguous(), indices.contiguous(), weights.contiguous()
        gated, products = (self._empty((rows * top_k, size), x.dtype) for size in (inner, hidden))
        y = self._empty((rows, hidden), x.dtype)
        addresses = (part.data_ptr() for part in (x, indices, weights, gated, products, y))
        count, num_bytes = packed
        read = min(rows * top_k, count) * num_bytes  # at most: rows may have chosen the same experts
        is_long = max(rows * top_k * 3 * hidden * inner / _LONG_PRODUCT, read / _LONG_READ) > 1
        self._run("experts", *addresses, rows, layer, is_long=is_long)
        return y


def _integers(kernel: str, x: Tensor) -> Tensor:
    if x.dtype is not torch.int64 or x.dim() != 1 or not is_plain(x):
        raise mismatch(kernel, x, "torch.int64 [T] on the CPU")
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
