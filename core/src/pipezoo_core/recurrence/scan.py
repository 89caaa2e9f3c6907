"""The selective scan: a matrix per head that forgets, and takes in what a row says, as fast as the row says.

Dao and Gu, 2024: "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
Duality", Mamba-2. The reference implementation is transformers' `modeling_granitemoehybrid`.

Shape suffixes: T rows, B requests, G groups, R heads of a group, H = G · R heads, C rows of a chunk, N state size,
P head size, S slots.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipezoo_core.native import NativeKernels
from pipezoo_core.recurrence.base import StateStep
from pipezoo_core.recurrence.chunks import chunks, left_of_states

__all__ = ["SelectiveScan", "selective_scan"]


class SelectiveScan(nn.Module):
    """The selective scan with what its steps are made of.

    With x of a head, B and C of its group, and a number dt for it, a step's length is `softplus(dt + dt_bias)`, within
    limits. S forgets by `exp(-exp(A_log) · length)` and takes `length · x` in: see `selective_scan`. The result has
    `D · x` added.

    Args:
        num_heads: of x and of the result.
        head_size: numbers per head.
        num_groups: of B, and as many of C; each serves as many heads in a row.
        state_size: numbers per group of B and C.
        length_limits: the shortest and the longest step.
    """

    keeps_float32 = ("A_log", "dt_bias", "D")

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        num_groups: int,
        state_size: int,
        length_limits: tuple[float, float] = (0.0, math.inf),
    ) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.D = nn.Parameter(torch.empty(num_heads))
        self.sizes = [num_heads * head_size, num_groups * state_size, num_groups * state_size]
        self._num_groups, self._head_size, self._state_size = num_groups, head_size, state_size
        self._limits = length_limits
        self._kernels: NativeKernels | None = None
        self._parameters_3H = torch.empty(0, dtype=torch.float32, device="cpu")

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Of one request's state."""
        return len(self.A_log), self._state_size, self._head_size

    def forward(self, xbc: Tensor, dt_TH: Tensor, state_SHNP: Tensor, step: StateStep) -> Tensor:
        """Returns what the rows read of their states, [T, H · P], of the dtype of `xbc`, and changes these.

        Args:
            xbc: [T, sum(sizes)]: x, B and C.
            dt_TH: of the step's length.
            state_SHNP: float32.
            step: which slots, and which rows are whose.
        """
        if self._kernels is not None:
            of_heads = self._parameters_3H
            return self._kernels.selective_scan(xbc, dt_TH, of_heads, self._limits, state_SHNP, step, self._num_groups)
        x, b, c = xbc.float().split(self.sizes, -1)
        x_THP = x.unflatten(-1, (-1, self._head_size))
        b_TGN, c_TGN = (part.unflatten(-1, (-1, self._state_size)) for part in (b, c))
        length_TH = F.softplus(dt_TH.float() + self.dt_bias).clamp(*self._limits)
        decay_TH = -self.A_log.exp() * length_TH
        y_THP = selective_scan(x_THP * length_TH.unsqueeze(-1), b_TGN, c_TGN, decay_TH, state_SHNP, step)
        return (y_THP + x_THP * self.D.unsqueeze(-1)).flatten(1).to(xbc.dtype)

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes with the native kernels from now on, which have what is of the heads side by side."""
        self._kernels = kernels
        self._parameters_3H = torch.stack((self.A_log.detach(), self.dt_bias.detach(), self.D.detach()))


def selective_scan(
    x_THP: Tensor, b_TGN: Tensor, c_TGN: Tensor, decay_TH: Tensor, state_SHNP: Tensor, step: StateStep
) -> Tensor:
    """Returns `Sᵀc` of each row and head, after S has become `exp(decay) · S + b xᵀ`.

    What is no number in a row stays in its request, but may show in rows before it, unlike with the kernels.

    Args:
        x_THP: the requests' rows one after another; all float32.
        b_TGN: likewise; head h has that of group `h // R`.
        c_TGN: likewise.
        decay_TH: at most 0; all is forgotten where it is -inf.
        state_SHNP: float32. Slots that the step writes are changed.
        step: which slots, and which rows are whose.

    Returns:
        float32 [T, H, P].
    """
    num_groups = b_TGN.shape[1]
    x_TGRP, decay_TGR = (x.unflatten(1, (num_groups, -1)) for x in (x_THP, decay_TH))
    rows, y_TGRP = (x_TGRP, b_TGN.unsqueeze(2), c_TGN.unsqueeze(2), decay_TGR), torch.empty_like(x_TGRP)
    for chunk, state_GRNP in chunks(state_SHNP.unflatten(1, (num_groups, -1)), step):
        x, b, c, decay = (each[chunk].movedim(0, 2) for each in rows)
        y_TGRP[chunk] = _chunk(x, b, c, decay, state_GRNP)
    return y_TGRP.flatten(1, 2)


def _chunk(x_GRCP: Tensor, b_G1CN: Tensor, c_G1CN: Tensor, decay_GRC: Tensor, state_GRNP: Tensor) -> Tensor:
    """Computes some rows of one request together (section 6 of the paper), and changes the state.

    Row i reads what was there before as `g_i Sᵀc_i`, where g_i is how much is left of S by then, and of each row j up
    to itself `g_i / g_j (c_i·b_j) x_j`.

    Returns:
        [C, G, R, P].
    """
    left_GRCC, left_GRC1 = left_of_states(decay_GRC)
    y_GRCP = left_GRC1 * (c_G1CN @ state_GRNP) + (left_GRCC * (c_G1CN @ b_G1CN.mT)) @ x_GRCP
    to_end_GRC1 = left_GRCC[..., -1, :].unsqueeze(-1)
    state_GRNP.mul_(left_GRC1[..., -1:, :]).add_(b_G1CN.mT @ (to_end_GRC1 * x_GRCP))
    return y_GRCP.movedim(2, 0)
