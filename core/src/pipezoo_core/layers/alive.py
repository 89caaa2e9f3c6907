"""What a layer says of the memory that it computes in, known before it has any weights."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

__all__ = ["Estimable", "estimable_layers"]


@runtime_checkable
class Estimable(Protocol):
    """A layer that says which tensors are alive while it computes, and so how much memory it takes.

    It speaks for all layers inside it. One that makes no more than its parts do needs to say nothing.
    """

    def alive(self, *, is_native: bool, fuse: bool, fuse_experts: bool) -> list[int]:
        """Returns the tensors that are alive together at most, by their numbers per row, without the layer's input.

        The result is one of them where it does not fit into what is free again by then. What is alive as long as the
        layer's input is one number, so that nothing of it counts as taking the input's place.

        Args:
            is_native: whether the native kernels compute it.
            fuse: see `use_linear_backend`.
            fuse_experts: likewise.
        """
        ...


def estimable_layers(module: nn.Module) -> list[Estimable]:
    """Returns the layers of a module that say what is alive; none that is inside another one."""
    if isinstance(module, Estimable):
        return [module]
    return [layer for child in module.children() for layer in estimable_layers(child)]
