"""Whether a draft is worth the rows it takes. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from pipezoo_core.drafting.step_times import StepCosts

__all__ = ["StepBalance"]


@dataclass(slots=True)
class StepBalance:
    """What a step takes and what it is expected to yield.

    A draft is worth it where a token takes less time with it. So it may be long where the step has a single row, or
    where a prompt's chunk is the most of it, and has to be nearly certain where many requests decode.

    Attributes:
        costs: of steps.
        num_rows: of the step.
        num_tokens: that are expected to come of it.
    """

    costs: StepCosts
    num_rows: int
    num_tokens: float

    def num_worthwhile(self, rate: float, most: int) -> int:
        """Returns how many tokens a draft should have for a token to take the least time.

        Args:
            rate: how likely each of them is, where those before it are right.
            most: that there may be.
        """
        best, best_count = self.num_tokens / self.costs.of(self.num_rows), 0
        num_tokens, likely = self.num_tokens, 1.0
        for count in range(1, most + 1):
            likely *= rate
            num_tokens += likely
            cost = self.costs.of(self.num_rows + count)
            if num_tokens > best * cost:
                best, best_count = num_tokens / cost, count
        return best_count

    def add(self, rate: float, count: int) -> None:
        """Adds a draft of so many tokens to the step."""
        self.num_rows += count
        self.num_tokens += sum(rate**place for place in range(1, count + 1))
