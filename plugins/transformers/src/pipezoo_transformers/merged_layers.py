"""Linear layers of transformers that read the same numbers, computed as one product.

transformers' code calls each by itself. The first call computes all of them, and the others take their part.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pipezoo_core.layers import MergedLinear

__all__ = ["PartOfMerged", "SharedInput", "merge"]


class SharedInput(MergedLinear):
    """A `MergedLinear` whose parts are asked for one by one.

    The parts of an input are kept until all of them are taken or there is another input. A part that is asked for
    twice, or of another input, is computed again: the order and the number of the calls matter to nothing but the
    time.
    """

    _given: Tensor | None = None
    _left: tuple[Tensor | None, ...] = ()

    def take(self, number: int, x: Tensor) -> Tensor:
        """Maps [..., in_features] to the part with this number, [..., out_features], which may lie in wider rows."""
        result = self._left[number] if x is self._given else None
        if result is None:
            parts = self(x.flatten(0, -2))
            self._given, self._left = x, tuple(part.unflatten(0, x.shape[:-1]) for part in parts)
            result = self._left[number]
            assert result is not None
        self._left = tuple(None if each == number else part for each, part in enumerate(self._left))
        if all(part is None for part in self._left):
            self._given = None
        return result


class PartOfMerged(nn.Module):
    """Stands where one of the layers was. The weight is the merged layer's.

    Args:
        merged: computes it.
        number: which of its parts.
    """

    def __init__(self, merged: SharedInput, number: int) -> None:
        super().__init__()
        self._merged = (merged,)  # not as a submodule, whose weight would have two names
        self._number = number

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        return self._merged[0].take(self._number, x)


def merge(parent: nn.Module, names: Sequence[str]) -> None:
    """Makes linear layers of a module, on the meta device, parts of one. All of them have a bias, or none has.

    Args:
        parent: of the layers.
        names: of the layers in it.
    """
    layers = {name: parent._modules[name] for name in names}
    linears = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    assert len(linears) == len(names), "others are not merged"
    first = linears[names[0]]
    sizes = {name: linear.out_features for name, linear in linears.items()}
    merged = SharedInput(first.in_features, sizes, bias=first.bias is not None)
    for number, name in enumerate(names):
        parent._modules[name] = PartOfMerged(merged, number)
    parent.add_module("+".join(names), merged)
