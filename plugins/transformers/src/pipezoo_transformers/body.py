"""The part of a model that maps tokens to hidden states, which is computed apart from the head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["Body"]


class Body:
    """A body that gives hidden states of before while the rest of its model, the head, is computed.

    Args:
        module: of transformers; its `forward` is replaced.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._forward = module.forward
        self._given: Tensor | None = None
        object.__setattr__(module, "forward", self._compute_or_give)

    def hidden(self, tokens_T: Tensor, positions_T: Tensor) -> Tensor:
        """Maps tokens [T] and their positions to hidden states [T, H]."""
        tokens_1T, positions_1T = tokens_T.unsqueeze(0), positions_T.unsqueeze(0)
        output = self._module(input_ids=tokens_1T, position_ids=positions_1T, use_cache=False)
        hidden_1TH: Tensor = output[0]
        return hidden_1TH[0]

    @contextmanager
    def giving(self, hidden: Tensor) -> Iterator[None]:
        """Inside, the body computes nothing: whatever it is called with, it returns these rows [R, H]."""
        self._given = hidden.unsqueeze(0)
        try:
            yield
        finally:
            self._given = None

    def _compute_or_give(self, *arguments: Any, **keywords: Any) -> Any:
        return self._forward(*arguments, **keywords) if self._given is None else _Output(self._given)


class _Output:
    """The output of a body, with nothing in it but hidden states."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None
