"""Linear layers whose weight is used by other code than their own, found out in a step without numbers.

Core's layers give their weight another form, so that these must stay what they are.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["watch_linears"]


class _WatchedLinear(nn.Linear):
    """A linear layer that notes who asks for its weight; its own `forward` does not."""

    asked: set[nn.Module]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        weight = self._parameters["weight"]
        assert weight is not None
        return F.linear(input, weight, self._parameters["bias"])

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            self.asked.add(self)
        return super().__getattr__(name)


def watch_linears(module: nn.Module) -> set[nn.Module]:
    """Makes a module's linear layers note that their weight is asked for; returns those of which it is, which grows."""
    asked: set[nn.Module] = set()
    for linear in [child for child in module.modules() if type(child) is nn.Linear]:
        linear.__class__ = _WatchedLinear
        object.__setattr__(linear, "asked", asked)
    return asked
