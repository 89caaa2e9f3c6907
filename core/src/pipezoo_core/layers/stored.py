"""Weights that stay as a file has quantized them: no number of theirs is rounded a second time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pipezoo_core.native import Packing, packed_bytes

__all__ = ["StoredType", "StoredWeight", "runs_of_parts"]


@dataclass(frozen=True, slots=True)
class StoredType:
    """A type in which files have quantized numbers.

    Attributes:
        name: e.g. `Q4_K`.
        block: numbers of a row that lie in one block.
        block_bytes: of such a block.
        dequantize: makes float32 [R, numbers] of uint8 [R, bytes].
        blocks: how its blocks lie, by the name that the kernels have for it; of GGUF's types that is their own.
        order: the columns in the order in which the blocks have them, the bytes of int32; None where it is their own.
    """

    name: str
    block: int
    block_bytes: int
    dequantize: Callable[[Tensor], Tensor]
    blocks: str = ""
    order: bytes | None = None

    @property
    def layout(self) -> tuple[str, bytes | None]:
        """What types have in common whose rows can lie one after the other in one weight."""
        return self.blocks or self.name, self.order

    def fits(self, num_columns: int) -> bool:
        """Whether a row of so many numbers is made of whole blocks, with all the columns that the order names."""
        return num_columns % self.block == 0 and (self.order is None or len(self.order) == 4 * num_columns)

    @property
    def packing(self) -> Packing | None:
        """What the kernels make of it; None where they have no form for it."""
        return Packing.of_type(self.blocks or self.name)


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """Rows of a weight as a file has them.

    Attributes:
        type: of all of them.
        rows: uint8 [out_features, bytes].
    """

    type: StoredType
    rows: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight: out_features, in_features."""
        num_rows, num_bytes = self.rows.shape
        return num_rows, num_bytes // self.type.block_bytes * self.type.block

    @property
    def packed_size(self) -> int:
        """The bytes of the weight when it is packed; its rows may be on the meta device."""
        assert self.type.packing is not None
        return packed_bytes(self.shape, self.type.packing)


def runs_of_parts(stored: Sequence[StoredWeight], sizes: Sequence[int]) -> list[list[int]]:
    """Returns for each run of rows the sizes of the parts that it holds.

    Args:
        stored: runs that follow each other.
        sizes: rows of each part, in the same order; no part lies in two runs.
    """
    rest, found = iter(sizes), []
    for weight in stored:
        parts: list[int] = []
        while sum(parts) < len(weight.rows):
            parts.append(next(rest))
        found.append(parts)
    return found
