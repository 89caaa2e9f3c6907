"""Whole numbers that are the same for each number of rows, or grow in proportion to it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["DEPENDS", "Proportion"]

DEPENDS = "what the module computes depends on the number of rows"


class Proportion:
    """Numbers as a function of the number of rows, found from those of two steps.

    Of 2 and 5 rows, 2 and 5 are T; 1,152 and 2,880 are 576 · T; 576 both times is 576.

    Args:
        few: the numbers of the smaller step, int64.
        many: those of the other.
        num_rows: of the two steps.
        what: the numbers are, for the error.

    Attributes:
        constants: what is the same for all numbers of rows, int64.
        per_row: what is added for each row, int64.

    Raises:
        ValueError: a number is neither the same nor in proportion, or the steps have not as many.
    """

    def __init__(
        self, few: npt.NDArray[np.int64], many: npt.NDArray[np.int64], num_rows: tuple[int, int], what: str
    ) -> None:
        if few.shape != many.shape:
            raise ValueError(DEPENDS)
        self.per_row = np.where(few == many, 0, few // num_rows[0])
        self.constants = np.where(few == many, few, 0)
        if (self.of(num_rows[0]) != few).any() or (self.of(num_rows[1]) != many).any():
            raise ValueError(f"{what} is not in proportion to the number of rows")

    def of(self, num_rows: int) -> npt.NDArray[np.int64]:
        """Returns the numbers for so many rows, int64."""
        return self.constants + num_rows * self.per_row
