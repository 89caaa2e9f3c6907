"""What a step does with its linear layers, noted while one without numbers goes through the model.

Core's layers give their weight another form, so that layers whose weight is used by other code must stay what they are.
Layers that read the same tensor can be computed as one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LinearCall", "LinearWatch"]


class LinearCall(NamedTuple):
    """A call of a linear layer.

    Attributes:
        layer: that is called.
        given: what it reads.
        version: how often that had been written to by then.
    """

    layer: nn.Module
    given: Tensor
    version: int


class LinearWatch:
    """Makes a module's linear layers note what is done with them.

    Args:
        module: whose layers are watched.

    Attributes:
        asked: the layers whose weight has been asked for by other code than their own.
        calls: of the layers, in their order.
    """

    def __init__(self, module: nn.Module) -> None:
        self.asked: set[nn.Module] = set()
        self.calls: list[LinearCall] = []
        for linear in [child for child in module.modules() if type(child) is nn.Linear]:
            linear.__class__ = _WatchedLinear
            object.__setattr__(linear, "watch", self)

    def begin(self) -> None:
        """Forgets the calls of a step that came to no end."""
        self.calls.clear()

    def alike(self) -> list[list[nn.Module]]:
        """Returns the layers that read the same numbers, of those that were called once and whose weight is theirs.

        It is not enough that they read the same tensor: it may be written to between their calls.
        """
        num_calls = Counter(call.layer for call in self.calls)
        groups: dict[tuple[int, int], list[nn.Module]] = defaultdict(list)
        for call in self.calls:
            if num_calls[call.layer] == 1 and call.layer not in self.asked:
                groups[id(call.given), call.version].append(call.layer)
        return [group for group in groups.values() if len(group) > 1]


class _WatchedLinear(nn.Linear):
    """A linear layer that notes its calls and who asks for its weight; its own `forward` does not."""

    watch: LinearWatch

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        self.watch.calls.append(LinearCall(self, input, input._version))
        weight = self._parameters["weight"]
        assert weight is not None
        return F.linear(input, weight, self._parameters["bias"])

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            self.watch.asked.add(self)
        return super().__getattr__(name)
