"""Which earlier tokens a layer sees, found by asking transformers' mask function for single pairs of positions.

Names and settings of configs say it in many ways; the function says it in one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipezoo_core.errors import UnsupportedModelError

__all__ = ["CAUSAL", "Sight", "sight_of"]

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Any]
"""Maps batch, head, query and key positions to whether the key is seen, as `transformers.masking_utils` has it."""

_MOST_POSITIONS = 2**17  # asked for


@dataclass(frozen=True, slots=True)
class Sight:
    """Which keys up to its own position a query sees.

    Attributes:
        sliding_window: the last so many; None for all.
        chunk: those of its own chunk of so many positions; None for no chunks.
    """

    sliding_window: int | None = None
    chunk: int | None = None

    def first(self, position: int) -> int:
        """Returns the first position that a query at this one sees.

        With a window of 4, position 9 sees 6 to 9; in chunks of 4, it sees 8 and 9.
        """
        if self.sliding_window is not None:
            return max(0, position - self.sliding_window + 1)
        return 0 if self.chunk is None else position // self.chunk * self.chunk


CAUSAL = Sight()


def sight_of(function: MaskFunction, size: int | None, max_length: int) -> Sight:
    """Returns what a mask function lets queries see.

    Args:
        function: of transformers.
        size: of the window or the chunk, where transformers names one.
        max_length: of a request.

    Raises:
        UnsupportedModelError: it is neither all earlier tokens, nor a window of them, nor a chunk.
    """
    last = min(max_length, _MOST_POSITIONS) - 1
    around = () if size is None else (size - 1, size, size + 1, 2 * size - 1, 2 * size, 2 * size + 1, 3 * size + 1)
    asked = sorted({0, 1, 17, last, *around})
    seen = {position: _seen(function, position) for position in asked if position <= max(last, 17)}
    for sight in _candidates(size):
        if all(keys == range(sight.first(position), position + 1) for position, keys in seen.items()):
            return sight
    position = max(seen)
    raise UnsupportedModelError(
        "a layer of the model sees other tokens than all earlier ones, a window of them, or a chunk",
        found=f"the token at position {position} sees {_shown(seen[position])}",
    )


def _candidates(size: int | None) -> Iterable[Sight]:
    return (CAUSAL,) if size is None else (CAUSAL, Sight(sliding_window=size), Sight(chunk=size))


def _seen(function: MaskFunction, position: int) -> range | list[int]:
    """Returns the positions seen, one after the last position included among those that are asked for."""
    keys = torch.arange(position + 2, dtype=torch.int64, device="cpu")
    zero = torch.zeros(1, dtype=torch.int64, device="cpu")
    answer = torch.as_tensor(function(zero, zero, zero + position, keys), dtype=torch.bool, device="cpu")
    found = keys[answer.expand(len(keys))].tolist()
    is_range = bool(found) and found == list(range(found[0], found[-1] + 1))
    return range(found[0], found[-1] + 1) if is_range else found


def _shown(keys: range | list[int]) -> str:
    return f"{keys.start} to {keys.stop - 1}" if isinstance(keys, range) else f"{len(keys)} tokens"
