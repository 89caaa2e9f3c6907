"""A causal convolution over few tokens, channel by channel, whose state is the inputs that the next token needs.

Shape suffixes: T rows, B requests, D channels, K taps, S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipezoo_core.recurrence.base import StateStep

__all__ = ["short_convolution"]


def short_convolution(
    x_TD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, state_SDK: Tensor, step: StateStep
) -> Tensor:
    """Returns y[t] = bias + Σₖ weight[k] · x[t - K + 1 + k], in float32 inside, and writes the requests' states.

    Inputs before a request's rows are those of its state: its last K - 1, the oldest first; zeros before its first.

    Args:
        x_TD: the requests' rows one after another.
        weight_DK: the last tap is the row's own.
        bias_D: added to each row; None for nothing.
        state_SDK: float32 [num_slots, D, K - 1]. Slots that the step writes are changed.
        step: which slots, and which rows are whose.

    Returns:
        [T, D], of the dtype of `x_TD`.
    """
    (num_rows, num_channels), num_taps = x_TD.shape, weight_DK.shape[1]
    num_kept, num_requests = num_taps - 1, len(step.read_slots)
    is_known_B11 = (step.read_slots >= 0).view(-1, 1, 1)
    before_BDK = torch.where(is_known_B11, state_SDK[step.read_slots.clamp(min=0)], 0.0)
    before_ND = before_BDK.transpose(1, 2).reshape(num_requests * num_kept, num_channels)
    inputs_ND = torch.cat((before_ND, x_TD.float()))
    starts_B = step.row_offsets[:-1]

    def places(requests: Tensor, offsets: Tensor) -> Tensor:
        """Returns where the inputs so far behind a request's first row are; those before it are in its state."""
        of_state, of_rows = (requests + 1) * num_kept + offsets, len(before_ND) + starts_B[requests] + offsets
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
    state_SDK[step.write_slots] = inputs_ND[places(requests_B1, lengths_B1 + kept_K)].transpose(1, 2)
    return y_TD.to(x_TD.dtype)
