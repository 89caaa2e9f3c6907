"""What a step of so many rows takes on this machine. Knows no torch."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque

__all__ = ["StepCosts", "StepTimes"]

_LARGEST = (1, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # of the numbers that are taken for alike
_FEW = 12  # rows, up to which a row is expected to cost next to nothing
_SINGLE_COST = 0.85
_NUM_KEPT = 5  # times of alike steps, the latest
_NUM_BELIEVED = 2  # of them, before which one may be another process's doing
_NUM_REMEMBERED = 256  # steps, after which a time is that of another context


class StepCosts:
    """What steps of alike numbers of requests cost, by their rows.

    Steps are alike whose rows are between the same two of a few numbers. Their time is the least of the latest: what
    comes to it is another process's doing. Of those that were not measured, the nearest tell how the machine compares
    with what is expected. A time is forgotten after a while, because requests grow. So a draft that was once too dear
    is tried again, in a few steps of some hundred.
    """

    def __init__(self) -> None:
        self._times: dict[int, deque[tuple[int, float]]] = {}  # by kind: in which step, and how many times the expected
        self._factors = [1.0] * (len(_LARGEST) + 1)
        self._num_steps = 0

    def of(self, num_rows: int) -> float:
        """Returns what a step of so many rows takes, in a unit of its own."""
        return _expected(num_rows) * self._factors[_kind(num_rows)]

    def note(self, num_rows: int, seconds: float) -> None:
        """Notes how long a step took."""
        self._num_steps += 1
        times = self._times.setdefault(_kind(num_rows), deque(maxlen=_NUM_KEPT))
        times.append((self._num_steps, seconds / _expected(num_rows)))
        known = {}
        for kind, times in self._times.items():
            while times and times[0][0] <= self._num_steps - _NUM_REMEMBERED:
                times.popleft()
            if len(times) >= _NUM_BELIEVED:
                known[kind] = min(factor for _, factor in times)
        for kind in range(len(self._factors)):
            nearest = min(known, key=lambda each: (abs(each - kind), each), default=None)
            self._factors[kind] = 1.0 if nearest is None else known[nearest]


class StepTimes:
    """Measures steps, apart for few requests and for many: a row of one that is alone costs otherwise."""

    def __init__(self) -> None:
        self._costs: dict[int, StepCosts] = defaultdict(StepCosts)
        self._recorded: set[int] = set()

    def costs(self, num_requests: int) -> StepCosts:
        """Returns what steps of about so many requests cost."""
        return self._costs[_kind(num_requests)]

    def note(self, num_requests: int, num_rows: int, seconds: float) -> None:
        """Notes how long a step took, but for the first one of so many rows, in which it may have been recorded."""
        if num_rows in self._recorded or num_rows > _LARGEST[-1]:
            self.costs(num_requests).note(num_rows, seconds)
        else:
            self._recorded.add(num_rows)


def _kind(number: int) -> int:
    return bisect_left(_LARGEST, number)


def _expected(num_rows: int) -> float:
    """Returns what a step of so many rows was measured to take, where 1 is what it takes for the weights alone.

    See docs/decisions/drafts.md.
    """
    if num_rows == 1:
        return _SINGLE_COST
    return 1 + 0.04 * num_rows if num_rows <= _FEW else 1.5 + 0.08 * num_rows
