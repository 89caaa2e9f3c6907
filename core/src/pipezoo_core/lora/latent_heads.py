"""What an adapter adds to the matrices of latent attention, which are applied to queries and to sums of latents.

Shape suffixes: T tokens that use an adapter, R rank, N heads, K numbers per head of keys, V of values, L latent size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipezoo_core.layers import LatentHeads
from pipezoo_core.lora.layers import LoRALayer

__all__ = ["adapt_latent_heads"]


def adapt_latent_heads(heads: LatentHeads, layer: LoRALayer) -> None:
    """Adds the step's adapters to what `LatentHeads` computes from now on, however it does.

    An adapter of its weight is B A: queries become Kᵀq + Aᵀ(Bᵀq), and sums of latents V s + B(A s), each with the rows
    of B that belong to a head's keys or values.

    Args:
        heads: the layer.
        layer: its slots.
    """

    def of_heads(b_RO: Tensor) -> tuple[Tensor, ...]:
        """Returns each head's rows of B for keys, [N, R, K], and for values, [N, R, V]."""
        return b_RO.unflatten(1, (-1, sum(heads.sizes))).transpose(0, 1).split(heads.sizes, 2)

    def add_to_queries(q_TNK: Tensor, y_TNL: Tensor) -> None:
        for rows, a_RL, b_RO in layer.of_step(len(q_TNK)):
            low_NTR = torch.bmm(q_TNK[rows].transpose(0, 1), of_heads(b_RO)[0].transpose(1, 2))
            _add(y_TNL, rows, low_NTR.transpose(0, 1) @ a_RL)

    def add_to_values(sums_TNL: Tensor, y_TNV: Tensor) -> None:
        for rows, a_RL, b_RO in layer.of_step(len(sums_TNL)):
            low_TNR = sums_TNL[rows] @ a_RL.T
            _add(y_TNV, rows, torch.bmm(low_TNR.transpose(0, 1), of_heads(b_RO)[1]).transpose(0, 1))

    heads.add_to_products(add_to_queries, add_to_values)


def _add(y: Tensor, rows: slice | Tensor, added: Tensor) -> None:
    if isinstance(rows, slice):
        y[rows] += added
    else:
        y.index_add_(0, rows, added)
