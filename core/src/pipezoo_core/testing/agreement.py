"""Whether two ways to compute the same come to the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipezoo_core.testing.failures import ConformanceError

__all__ = ["check_same_logits", "difference", "tolerance"]

_PART = 1e-4  # of the greatest logit: float32 in another order of sums


def tolerance(expected: Tensor) -> float:
    """Returns how far float32 results may be from these."""
    return _PART * max(1.0, expected.abs().max().item())


def difference(found: Tensor, expected: Tensor) -> float:
    """Returns the greatest difference; infinity where one has other numbers than numbers."""
    most = (found - expected).abs().max().item()
    return float("inf") if math.isnan(most) else most


def check_same_logits(found: Sequence[Tensor], expected: Sequence[Tensor], what: str, cause: str) -> None:
    """Raises ConformanceError where the logits of prompts, each [S, V], differ.

    Args:
        found: computed in the way that is checked.
        expected: computed in another.
        what: the message, with a place `{}` for the prompt and the token that differ first.
        cause: what the author most likely got wrong.
    """
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours.shape != theirs.shape:
            raise ConformanceError(
                what.format(f"prompt {number + 1} of {len(found)}, by their shape"),
                found=list(ours.shape),
                allowed=list(theirs.shape),
                cure="There is a row for each token, with a number for each of the vocabulary: compare vocab_size, and "
                "what compute_logits returns.",
            )
        if difference(ours, theirs) <= tolerance(theirs):
            continue
        is_off = ~((ours - theirs).abs().amax(-1) <= tolerance(theirs))
        first = int(torch.nonzero(is_off)[0])
        raise ConformanceError(
            what.format(f"token {first} of a prompt of {len(ours)} (number {number + 1} of {len(found)})"),
            found=f"logits that differ by {difference(ours, theirs):.2g}",
            allowed=f"{tolerance(theirs):.2g}",
            cure=cause,
        )
