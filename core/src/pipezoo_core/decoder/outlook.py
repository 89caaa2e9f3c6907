"""How a model's steps will run, as people read it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

__all__ = ["StepOutlook"]


@dataclass(frozen=True, slots=True)
class StepOutlook:
    """What computes the steps of a model, and why not what is faster.

    Attributes:
        attention: the backends, each with what keeps the kernels from being one.
        obstacle: to replaying steps of one row; None where they are replayed.
        operations: of torch in a replayed step, those that have no kernel, in their order.
    """

    attention: str
    obstacle: str | None
    operations: tuple[str, ...] = ()

    @property
    def replay(self) -> str:
        """Whether steps are replayed: "yes, but for 3 operations of torch: aten.cos.default, 2 aten.cumsum.default"."""
        if self.obstacle is not None:
            return f"no: {self.obstacle}"
        if not self.operations:
            return "yes"
        names = (f"{count} {name}" if count > 1 else name for name, count in Counter(self.operations).items())
        count = len(self.operations)
        return f"yes, but for {count} operation{'s' if count > 1 else ''} of torch: {', '.join(names)}"
