"""What goes into and comes out of every module of a model, while it computes one prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Call", "recorded_calls"]


_INPUTS = ("hidden_states", "input_ids", "input")  # by which a module's first argument may be given


@dataclass(slots=True)
class Call:
    """The first call of a module.

    Attributes:
        begun: its place among the beginnings and ends of all calls.
        ended: the same of its end.
        arguments: copies of its tensors, others as they are, by position.
        named: the same by name.
        result: a copy of what it returned.
    """

    begun: int
    ended: int
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    result: Any

    @property
    def input(self) -> Tensor | None:
        """The first argument, [T, …]; None where it is no tensor."""
        given = [*self.arguments[:1], *(self.named[name] for name in _INPUTS if name in self.named)]
        return _rows(given[0]) if given else None

    @property
    def output(self) -> Tensor | None:
        """What it returned, of several the first, [T, …]; None where that is no tensor."""
        return _rows(self.result[0] if isinstance(self.result, tuple) and self.result else self.result)


@contextmanager
def recorded_calls(model: nn.Module) -> Iterator[Mapping[str, Call]]:
    """Records the first call of each module, by its name, while the context lasts."""
    calls: dict[str, Call] = {}
    clock = 0
    handles = []

    def begin(name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        nonlocal clock
        clock += 1
        if name not in calls:
            by_name = {key: _copied(value) for key, value in named.items()}
            calls[name] = Call(clock, 0, _copied(arguments), by_name, None)

    def end(name: str, result: Any) -> None:
        nonlocal clock
        clock += 1
        if not calls[name].ended:
            calls[name].ended, calls[name].result = clock, _copied(result)

    for name, module in model.named_modules():

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
            begin(name, args, kwargs)

        def after(_: nn.Module, __: tuple[Any, ...], result: Any, name: str = name) -> None:
            end(name, result)

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return tuple(map(_copied, value)) if isinstance(value, tuple) else value


def _rows(value: Any) -> Tensor | None:
    """Returns a tensor without the dimension of a batch of one."""
    if not isinstance(value, Tensor):
        return None
    return value[0] if value.dim() > 2 and len(value) == 1 else value
