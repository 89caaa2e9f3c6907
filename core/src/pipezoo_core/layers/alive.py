"""What a layer says of the memory that it computes in, known before it has any weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import nn

__all__ = ["Estimable", "KernelUse", "estimable_layers"]

_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelUse:
    """What the native kernels compute of a model.

    Attributes:
        is_native: whether they compute its layers; the others say nothing where they do not.
        fuse: see `use_linear_backend`.
        fuse_experts: likewise.
        itemsize: bytes of one of the run's numbers.
    """

    is_native: bool
    fuse: bool
    fuse_experts: bool
    itemsize: int

    @property
    def wide(self) -> int:
        """How many of the run's numbers take as much as one of float32."""
        return _FLOAT_BYTES // self.itemsize

    @property
    def widened(self) -> int:
        """The same of a number that is turned into float32; none where it is that already, and nothing is copied."""
        return self.wide if self.wide > 1 else 0

    @property
    def in_experts(self) -> KernelUse:
        """What they compute in an expert, whose layers are fused by a setting of their own."""
        return replace(self, fuse=self.fuse_experts)


@runtime_checkable
class Estimable(Protocol):
    """A layer that says which tensors are alive while it computes, and so how much memory it takes.

    It speaks for all layers inside it. One that makes no more than its parts do needs to say nothing.
    """

    def alive(self, kernels: KernelUse) -> list[int]:
        """Returns the tensors that are alive together at most, by their numbers per row, without the layer's input.

        The result is one of them where it does not fit into what is free again by then. What is alive as long as the
        layer's input is one number, so that nothing of it counts as taking the input's place.

        Args:
            kernels: what computes it.
        """
        ...


def estimable_layers(module: nn.Module) -> list[Estimable]:
    """Returns the layers of a module that say what is alive; none that is inside another one."""
    if isinstance(module, Estimable):
        return [module]
    return [layer for child in module.children() for layer in estimable_layers(child)]
