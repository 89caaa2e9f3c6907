"""The ranks of a model, as its layers see them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["TensorParallelGroup"]


class TensorParallelGroup:
    """The ranks that compute one model together; this class is that of a model in a single process.

    Args:
        rank: of this process.
        size: how many ranks there are. With several, this class says how a model is divided, but cannot compute it.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def signal_buffers(self) -> list[Tensor]:
        """The memory that the ranks of one host share: uint8, one per rank; none where there is no such memory."""
        return []

    def all_reduce(self, x: Tensor) -> Tensor:
        """Returns the sum over all ranks, of the shape and dtype of x, which may be overwritten."""
        return x

    def gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Returns on rank 0 the parts of all ranks side by side, [rows, sum(sizes)]; on others something to ignore.

        Args:
            x: [rows, sizes[rank]].
            sizes: of all ranks' parts.
        """
        del sizes
        return x
