"""Which requests of a step have numbers that are not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["spoiled_rows"]


def spoiled_rows(hidden_TH: Tensor, lengths: Sequence[int]) -> Tensor:
    """Returns for each row 0, or NaN where a hidden state of its request up to it is not finite in this step, [T, 1].

    Later rows may not show it: in pages there is nothing of what is not finite. With lengths 2, 1 and 2 and NaN in
    rows 0 and 4, rows 0, 1 and 4 have NaN. Row 3 has none: what comes behind it may be a draft, which says nothing of
    it.
    """
    greatest_T1 = torch.linalg.vector_norm(hidden_TH, torch.inf, -1, keepdim=True)
    sums = [part.cumsum(0) for part in (greatest_T1 - greatest_T1).split(list(lengths))]
    return torch.cat(sums)
