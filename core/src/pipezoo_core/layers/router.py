"""The layer that chooses the experts of a mixture."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipezoo_core.layers.routing import Routing
from pipezoo_core.native import NativeKernels, address_of, bits, check_tensor

__all__ = ["Router"]

_SCORES = ("softmax", "sigmoid", "softmax_of_chosen")  # by their numbers in the kernels' routing.h


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
        self._sizes = (hidden_size, num_experts, routing.top_k)
        self._kernels: NativeKernels | None = None
        self._description = np.empty(0, dtype=np.int64)

    def forward(self, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        """Returns each token's experts, int64 [T, K], and their weights, float32 [T, K]."""
        if self._kernels is not None:
            return self._kernels.route(x_TH, self._description.ctypes.data, self._sizes)
        return self.routing(F.linear(x_TH.float(), self.weight, self.bias), self.e_score_correction_bias)

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes with the native kernels from now on; the parameters stay where they are.

        Raises:
            TensorMismatchError: a parameter is no contiguous one of the layer's sizes, in float32.
        """
        routing, hidden = self.routing, self._sizes[0]
        parameters = (self.weight, self.bias, self.e_score_correction_bias)
        shapes = ((routing.num_experts, hidden), (routing.num_experts,), (routing.num_experts,))
        for parameter, shape in zip(parameters, shapes, strict=True):
            if parameter is not None:
                check_tensor("route's parameters", parameter, torch.float32, shape, contiguous=True)
        self._description = np.array(
            [
                *map(address_of, parameters),
                *self._sizes,
                _SCORES.index(routing.scores),
                routing.normalize,
                routing.num_groups,
                routing.num_chosen_groups,
                routing.group_best,
                bits(float(routing.added_to_sum)),
                bits(float(routing.scale)),
            ],
            dtype=np.int64,
        )
        self._kernels = kernels
