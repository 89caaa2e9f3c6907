"""What an adapter adds to the matrices of latent attention, which are applied to queries and to sums of latents.

Shape suffixes: T tokens that use an adapter, R rank, N heads, K numbers per head of keys, V of values, L latent size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipezoo_core.layers import LatentHeads
from pipezoo_core.lora.layers import LoRABatch, LoRALayer

__all__ = ["LoRALatentHeads"]


class LoRALatentHeads(LoRALayer):
    """Adds the step's adapters to what `LatentHeads` computes, however it does.

    An adapter of its weight is B A: queries become Kᵀq + Aᵀ(Bᵀq), and sums of latents V s + B(A s), each with the rows
    of B that belong to a head's keys or values.

    Args:
        heads: the layer.
        batch: where the step's adapters are read.
        name: of the layer.
        num_slots: adapters that there is room for.
        max_rank: the greatest rank there is room for.
        device: where the layer computes.
        dtype: of its rows.
    """

    def __init__(
        self,
        heads: LatentHeads,
        batch: LoRABatch,
        name: str,
        *,
        num_slots: int,
        max_rank: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        sizes = {name: heads.out_features}
        slots = {"num_slots": num_slots, "max_rank": max_rank}
        super().__init__(batch, heads.in_features, sizes, **slots, device=device, dtype=dtype)
        self._head_sizes = heads.sizes
        heads.add_to_products(self._add_to_queries, self._add_to_values)

    def _add_to_queries(self, q_TNK: Tensor, y_TNL: Tensor) -> None:
        for rows, a_RL, b_RO in self.of_step(len(q_TNK)):
            low_NTR = torch.bmm(q_TNK[rows].transpose(0, 1), self._of_heads(b_RO)[0].transpose(1, 2))
            _add(y_TNL, rows, low_NTR.transpose(0, 1) @ a_RL)

    def _add_to_values(self, sums_TNL: Tensor, y_TNV: Tensor) -> None:
        for rows, a_RL, b_RO in self.of_step(len(sums_TNL)):
            low_TNR = sums_TNL[rows] @ a_RL.T
            _add(y_TNV, rows, torch.bmm(low_TNR.transpose(0, 1), self._of_heads(b_RO)[1]).transpose(0, 1))

    def _of_heads(self, b_RO: Tensor) -> tuple[Tensor, Tensor]:
        """Returns each head's rows of B for keys, [N, R, K], and for values, [N, R, V]."""
        keys_NRK, values_NRV = b_RO.unflatten(1, (-1, sum(self._head_sizes))).transpose(0, 1).split(self._head_sizes, 2)
        return keys_NRK, values_NRV


def _add(y: Tensor, rows: slice | Tensor, added: Tensor) -> None:
    if isinstance(rows, slice):
        y[rows] += added
    else:
        y.index_add_(0, rows, added)
