"""The layer that chooses the experts of a mixture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipezoo_core.layers.routing import Routing

__all__ = ["Router"]


class Router(nn.Module):
    """Chooses each token's experts by a product with its row, in float32 whatever the precision of the run.

    It is neither quantized nor adapted: the least change of a logit can give a token other experts.

    Args:
        hidden_size: numbers per row.
        routing: what becomes of the logits.
        bias: whether they have one.
        correction: whether the checkpoint has an `e_score_correction_bias`, which the scores get for the choice alone.
    """

    keeps_float32 = ("weight", "bias", "e_score_correction_bias")

    def __init__(self, hidden_size: int, routing: Routing, *, bias: bool = False, correction: bool = False) -> None:
        super().__init__()
        self.routing = routing
        num_experts = routing.num_experts
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_experts)) if bias else None
        self.e_score_correction_bias = nn.Parameter(torch.empty(num_experts)) if correction else None

    def forward(self, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        """Returns each token's experts, int64 [T, K], and their weights, float32 [T, K]."""
        return self.routing(F.linear(x_TH.float(), self.weight, self.bias), self.e_score_correction_bias)
