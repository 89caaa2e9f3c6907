"""A causal convolution over few tokens, channel by channel, whose state is the inputs that the next token needs.

Shape suffixes: T rows, B requests, D channels, K taps, S slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipezoo_core.native import NativeKernels
from pipezoo_core.recurrence.base import StateStep

__all__ = ["ShortConvolution", "short_convolution"]


_FLOAT_BYTES = 4


class ShortConvolution(nn.Module):
    """A `short_convolution` with its weights, named and shaped as those of a `Conv1d` whose groups are single channels.

    Args:
        num_channels: numbers per row.
        num_taps: how many rows a result is made of: the row itself and those before it.
        bias: whether there is one.
        activation: silu of each result; else the result itself.
    """

    def __init__(self, num_channels: int, num_taps: int, *, bias: bool = False, activation: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_channels, 1, num_taps))
        self.bias = nn.Parameter(torch.empty(num_channels)) if bias else None
        self._is_activated = activation
        self._kernels: NativeKernels | None = None
        self._taps_KD = torch.empty(0, dtype=torch.float32, device="cpu")

    @property
    def state_shape(self) -> tuple[int, int]:
        """Of one request's state: the inputs that the next row needs, the oldest first."""
        num_channels, _, num_taps = self.weight.shape
        return num_taps - 1, num_channels

    def working_memory(self, num_rows: int, num_requests: int) -> int:
        """Returns the bytes that a step in torch takes beyond four float32 numbers for each row and channel.

        The four are inputs, their sum, and of a tap the inputs and products. Before the inputs lies what is read of the
        requests' states; while both are put together, there are two of each.
        """
        num_kept, num_channels = self.state_shape
        kept = num_kept * num_requests
        return max(kept, 2 * (kept - num_rows)) * num_channels * _FLOAT_BYTES

    def forward(self, x_TD: Tensor, state_SKD: Tensor, step: StateStep) -> Tensor:
        """Maps [T, D] to the same; see `short_convolution`."""
        if self._kernels is not None:
            return self._kernels.short_convolution(
                x_TD, self._taps_KD, self.bias, state_SKD, step, is_activated=self._is_activated
            )
        y_TD = short_convolution(x_TD, self.weight.squeeze(1), self.bias, state_SKD, step)
        return F.silu(y_TD) if self._is_activated else y_TD

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes with the native kernels from now on, which read tap by tap."""
        self._kernels = kernels
        self._taps_KD = self.weight.detach().squeeze(1).T.contiguous()


def short_convolution(
    x_TD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, state_SKD: Tensor, step: StateStep
) -> Tensor:
    """Returns y[t] = bias + Σₖ weight[k] · x[t - K + 1 + k], in float32 inside, and writes the requests' states.

    Inputs before a request's rows are those of its state: its last K - 1, the oldest first; zeros before its first.

    Args:
        x_TD: the requests' rows one after another.
        weight_DK: the last tap is the row's own.
        bias_D: added to each row; None for nothing.
        state_SKD: float32 [num_slots, K - 1, D]. Slots that the step writes are changed.
        step: which slots, and which rows are whose.

    Returns:
        [T, D], of the dtype of `x_TD`.
    """
    (num_rows, num_channels), num_taps = x_TD.shape, weight_DK.shape[1]
    num_kept, num_requests = num_taps - 1, len(step.read_slots)
    is_known_B11 = (step.read_slots >= 0).view(-1, 1, 1)
    before_BKD = torch.where(is_known_B11, state_SKD[step.read_slots.clamp(min=0)], 0.0)
    num_before = num_requests * num_kept
    inputs_ND = torch.cat((before_BKD.reshape(num_before, num_channels), x_TD.float()))
    del before_BKD
    starts_B = step.row_offsets[:-1]

    def places(requests: Tensor, offsets: Tensor) -> Tensor:
        """Returns where the inputs so far behind a request's first row are; those before it are in its state."""
        of_state, of_rows = (requests + 1) * num_kept + offsets, num_before + starts_B[requests] + offsets
        return torch.where(offsets < 0, of_state, of_rows)

    rows_T = torch.arange(num_rows, dtype=torch.int64, device=x_TD.device)
    requests_T = torch.searchsorted(step.row_offsets, rows_T, right=True) - 1
    first_T = rows_T - starts_B[requests_T] - num_kept
    y_TD = torch.zeros_like(inputs_ND[:num_rows]) if bias_D is None else bias_D.float().expand(num_rows, -1).clone()
    for tap in range(num_taps):
        y_TD += inputs_ND[places(requests_T, first_T + tap)] * weight_DK[:, tap].float()

    requests_B1 = torch.arange(num_requests, dtype=torch.int64, device=x_TD.device).unsqueeze(1)
    kept_K = torch.arange(-num_kept, 0, dtype=torch.int64, device=x_TD.device)
    lengths_B1 = step.row_offsets.diff().unsqueeze(1)
    state_SKD[step.write_slots] = inputs_ND[places(requests_B1, lengths_B1 + kept_K)]
    return y_TD.to(x_TD.dtype)
