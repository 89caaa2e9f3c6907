"""What a step of so many rows takes on this machine. Knows no torch."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

__all__ = ["StepTimes"]

_LARGEST = (1, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # rows of the steps that are taken for alike
_FEW = 12  # rows, up to which a row is expected to cost next to nothing
_SINGLE_COST = 0.85
_NUM_KEPT = 5  # times of alike steps, the latest
_NUM_BELIEVED = 2  # of them, before which one may be that of a recording or of another process
_NUM_REMEMBERED = 256  # steps, after which a time is that of another context


class StepTimes:
    """Measures steps, and expects of those that were not measured what they took elsewhere.

    Steps are alike whose rows are between the same two of a few numbers. Their time is the least of the latest: what
    comes to it is another process's doing. It is forgotten after a while, because requests grow and others come. So a
    draft that was once too dear is tried again, in one step of some hundred.
    """

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        self._noted: dict[int, int] = {}  # when the last time of alike steps was noted, in steps
        self._num_steps = 0

    def note(self, num_rows: int, seconds: float) -> None:
        """Notes how long a step took."""
        kind = bisect_left(_LARGEST, num_rows)
        self._num_steps += 1
        for old in [each for each, noted in self._noted.items() if noted < self._num_steps - _NUM_REMEMBERED]:
            del self._times[old], self._noted[old]
        self._times.setdefault(kind, deque(maxlen=_NUM_KEPT)).append(seconds / _expected(num_rows))
        self._noted[kind] = self._num_steps

    def cost(self, num_rows: int) -> float:
        """Returns what a step of so many rows takes, in a unit of its own.

        That is what is expected of it, times how much dearer than expected were alike steps, or where none were
        measured, those nearest to them.
        """
        kind = bisect_left(_LARGEST, num_rows)
        known = [each for each, times in self._times.items() if len(times) >= _NUM_BELIEVED]
        nearest = min(known, key=lambda each: abs(each - kind), default=None)
        return _expected(num_rows) * (1.0 if nearest is None else min(self._times[nearest]))


def _expected(num_rows: int) -> float:
    """Returns what a step of so many rows was measured to take, where 1 is what it takes for the weights alone.

    See docs/decisions/drafts.md.
    """
    if num_rows == 1:
        return _SINGLE_COST
    return 1 + 0.04 * num_rows if num_rows <= _FEW else 1.5 + 0.08 * num_rows
