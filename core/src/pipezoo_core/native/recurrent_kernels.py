"""The kernels of layers that keep a state; what they compute is said in `recurrence`."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pipezoo_core.native.calls import KernelCalls, address_of, check_tensor, mismatch, shape_of

__all__ = ["RecurrentKernels", "StateRows"]


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


class RecurrentKernels(KernelCalls):
    """The kernels that read and write a request's state."""

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
        num_taps, size = shape_of("short_convolution's taps", taps, 2)
        self._check_rows("short_convolution", x, size)
        self._check("short_convolution's taps", taps, num_taps, size)
        if bias is not None:
            self._check("short_convolution's bias", bias, size)
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
        _, heads, key_size, value_size = shape_of("gated_delta_rule's state", state, 4)
        if num_key_heads < 1 or heads % num_key_heads:
            raise mismatch("gated_delta_rule's state", state, f"heads that {num_key_heads} key heads serve evenly")
        self._check_rows("gated_delta_rule", qkv, 2 * num_key_heads * key_size + heads * value_size)
        self._check_states("gated_delta_rule", qkv, state, (heads, key_size, value_size), step)
        for gate in gates:
            self._check("gated_delta_rule's gates", gate, len(qkv), heads)
        for parameter in decay:
            check_tensor("gated_delta_rule's decay", parameter, torch.float32, (heads,), contiguous=True)
        qkv, a, b = (x if x.stride(-1) == 1 else x.contiguous() for x in (qkv, *gates))
        y = self._empty((len(qkv), heads * value_size), qkv.dtype)
        strided = [number for x in (qkv, a, b) for number in (x.data_ptr(), x.stride(0))]
        addresses = (*(x.data_ptr() for x in (*decay, state, y)), step.address)
        self._run("gated_delta_rule", *strided, *addresses, num_key_heads, heads, key_size, value_size)
        return y

    def selective_scan(
        self,
        xbc: Tensor,
        dt: Tensor,
        of_heads: Tensor,
        length_limits: tuple[float, float],
        state: Tensor,
        step: StateRows,
        num_groups: int,
    ) -> Tensor:
        """Returns what the rows read of the states that they change, [T, heads · head_size]; see `recurrence`.

        Args:
            xbc: [T, heads · head_size + 2 · num_groups · state_size]: x, B and C.
            dt: of the step's length, [T, heads].
            of_heads: the logarithm of the decay's rate, what dt gets added, and the part of x that is let through,
                float32 [3, heads].
            length_limits: the shortest and the longest step.
            state: float32 [num_slots, heads, state_size, head_size], written.
            step: of the rows.
            num_groups: of B, and as many of C.
        """
        _, heads, state_size, head_size = shape_of("selective_scan's state", state, 4)
        if num_groups < 1 or heads % num_groups:
            raise mismatch("selective_scan's state", state, f"a multiple of {num_groups} groups of heads, at least 1")
        self._check_rows("selective_scan", xbc, heads * head_size + 2 * num_groups * state_size)
        self._check_states("selective_scan", xbc, state, (heads, state_size, head_size), step)
        self._check("selective_scan's dt", dt, len(xbc), heads)
        check_tensor("selective_scan's parameters", of_heads, torch.float32, (3, heads), contiguous=True)
        xbc, dt = (x if x.stride(-1) == 1 else x.contiguous() for x in (xbc, dt))
        y = self._empty((len(xbc), heads * head_size), xbc.dtype)
        strided = [number for x in (xbc, dt) for number in (x.data_ptr(), x.stride(0))]
        addresses = (of_heads.data_ptr(), *map(float, length_limits), state.data_ptr(), y.data_ptr(), step.address)
        self._run("selective_scan", *strided, *addresses, num_groups, heads, state_size, head_size)
        return y

    def gated_rms_norm(
        self, x: Tensor, weight: Tensor, gate: Tensor, eps: float, num_groups: int | None = None
    ) -> Tensor:
        """Returns `x / sqrt(mean(x²) + eps) · weight · silu(gate)` of each head, [T, heads · size].

        With groups, `u / sqrt(mean(u²) + eps) · weight` of each of them, where `u = x · silu(gate)`.

        Args:
            x: [T, heads · size].
            weight: [size]; of groups [heads · size].
            gate: as `x`; rows of a wider tensor among them.
            eps: added to the mean.
            num_groups: how many groups there are, or None for heads that have one weight.
        """
        rows, width = shape_of("gated_rms_norm", x, 2)
        size = weight.numel() if num_groups is None else width // max(1, num_groups)
        if size < 1 or width % size or num_groups not in (None, width // size):
            raise mismatch("gated_rms_norm's weight", weight, f"one for {width} numbers, of whole heads or groups")
        of_weight = size if num_groups is None else width
        self._check("gated_rms_norm", x, rows, width)
        self._check("gated_rms_norm's weight", weight, of_weight, contiguous=True)
        self._check("gated_rms_norm's gate", gate, rows, width)
        x, gate = x.contiguous(), gate if gate.stride(-1) == 1 else gate.contiguous()
        y = self._empty(x.shape, x.dtype)
        addresses = (x.data_ptr(), weight.data_ptr(), gate.data_ptr(), y.data_ptr())
        weight_stride, is_gated_first = (0, 0) if num_groups is None else (size, 1)
        strides = (weight_stride, gate.stride(0))
        self._run("gated_rms_norm", *addresses, rows, width // size, size, *strides, eps, is_gated_first)
        return y

    def _check_states(self, kernel: str, x: Tensor, state: Tensor, shape: tuple[int, ...], step: StateRows) -> None:
        """Raises for states of another form, for rows of another, and for another number of them than the step has."""
        check_tensor(f"{kernel}'s state", state, torch.float32, (*state.shape[:1], *shape), contiguous=True)
        shape_of(kernel, x, 2)
        if self.observer is None and not (len(x) == step.num_rows and step.row_offsets.is_cpu):
            raise mismatch(kernel, x, f"{step.num_rows} rows, those of the step, which lies on the CPU")
