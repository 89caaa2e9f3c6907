"""Both models on one prompt, tensor by tensor: where do they part?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from pipezoo_core.config import AttentionName, LinearName
from pipezoo_core.layers import MergedLinear
from pipezoo_core.testing.recording import Call, recorded_calls
from pipezoo_core.testing.reference import reference_logits
from pipezoo_core.testing.steps import logits_of
from pipezoo_core.testing.subject import Subject
from pipezoo_core.testing.weight_map import weight_map

__all__ = ["Point", "Trace", "are_equal"]

_CLOSE = 2e-4  # of the greatest number


@dataclass(frozen=True, slots=True)
class Point:
    """A tensor that both models compute.

    Attributes:
        module: the name of the plugin's, of a `MergedLinear` that of its part.
        theirs: the name of the reference's.
        is_input: of the module, instead of its output.
        when: its place in the plugin's computation.
        ours: [T, …].
        wanted: of the same shape.
    """

    module: str
    theirs: str
    is_input: bool
    when: int
    ours: Tensor
    wanted: Tensor

    @property
    def is_equal(self) -> bool:
        """Whether both are the same; an output in another order of its columns, too, as rotations need it."""
        return are_equal(self.ours, self.wanted) or (not self.is_input and _is_reordered(self.ours, self.wanted))

    def __str__(self) -> str:
        also = "" if self.theirs == self.module else f" ({self.theirs} in the reference)"
        return f"the {'input' if self.is_input else 'output'} of {self.module}{also}"


class Trace:
    """The calls of both models, and the points at which they can be compared.

    Modules are aligned by their weights: a layer of the plugin's and one of the reference's are the same where a tensor
    of the checkpoint is the weight of both, and modules that contain the same layers are the same.

    Args:
        subject: with which it is recorded.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.tokens = subject.prompts[1]
        loaded: Any = subject.load(attention=AttentionName.reference, linear=LinearName.torch, enforce_eager=True)
        self.module: nn.Module = loaded.module
        with recorded_calls(self.module) as self.ours:
            (self.logits,) = logits_of(loaded, [self.tokens])
        with recorded_calls(subject.reference) as self.theirs:
            self.wanted_logits = reference_logits(subject.reference, self.tokens)
        self.sources = weight_map(subject)

    @cached_property
    def aligned(self) -> dict[str, str]:
        """For layers of the plugin's module and modules around them those of the reference."""
        leaves = self._leaves
        found = dict(leaves)
        theirs = set(leaves.values())
        for name, _ in self.module.named_modules():
            below = {other for leaf, other in leaves.items() if leaf.startswith(f"{name}.")}
            common = _common_module(below)
            if len(below) > 1 and common and below == {other for other in theirs if other.startswith(f"{common}.")}:
                found[name] = common
        return found | self._mixtures

    @cached_property
    def _mixtures(self) -> dict[str, str]:
        """The mixtures of experts, whose weights checkpoints call otherwise than the reference does, by their order."""
        ours, theirs = (
            [name.rpartition(".")[0] for name, _ in model.named_modules() if name.rpartition(".")[2] == "experts"]
            for model in (self.module, self.subject.reference)
        )
        return dict(zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else {}

    @cached_property
    def _leaves(self) -> dict[str, str]:
        known = dict(self.subject.reference.named_modules())
        found: dict[str, str] = {}
        for name, sources in self.sources.items():
            layer, _, parameter = name.rpartition(".")
            others = {source.rpartition(".")[0] for source in sources}
            if len(others) == 1 and parameter in ("weight", "bias") and others <= known.keys():
                found[layer] = others.pop()
        return found

    @cached_property
    def points(self) -> list[Point]:
        """All of them, in the order of the plugin's computation."""
        outputs = self._outputs_of_parts()
        found: list[Point] = []
        for name, other in self.aligned.items():
            theirs = self.theirs.get(other)
            merged = self._merged_around(name)
            ours = self.ours.get(merged or name)
            if ours is None or theirs is None:
                continue
            output = outputs.get(name) if merged else ours.output
            for is_input, when, tensor, wanted in (
                (True, ours.begun, ours.input, theirs.input),
                (False, ours.ended, output, theirs.output),
            ):
                if tensor is not None and wanted is not None and tensor.shape == wanted.shape:
                    found.append(Point(name, other, is_input, when, tensor.float(), wanted.float()))
        return sorted(found, key=lambda point: point.when)

    @cached_property
    def parted(self) -> tuple[Point | None, Point | None]:
        """The last point before the models part, and the first behind it; None where there is none.

        What differs and does no harm, an embedding that one of them scales later, is passed over: between layers, the
        first input or output of a layer that differs shows where to look.
        """
        layers = {name for name, _ in self.module.named_modules() if name.rpartition(".")[2].isdigit()}
        chain = [point for point in self.points if point.module in layers]
        before = [point for point in chain if point.is_equal]
        behind = next((point for point in chain if not point.is_equal), None)
        begin = max((point.when for point in before if behind is None or point.when < behind.when), default=-1)
        within = [point for point in self.points if point.when > begin]
        first = next((point for point in within if not point.is_equal), behind)
        last = [point for point in self.points if point.is_equal and (first is None or point.when < first.when)]
        return (last[-1] if last else None), first

    def calls_between(self, begin: int, end: int, kind: type[nn.Module]) -> list[tuple[str, Any, Call]]:
        """Returns the plugin's modules of a kind that ended between two moments, the last one first."""
        modules = dict(self.module.named_modules())
        found = [
            (name, modules[name], call)
            for name, call in self.ours.items()
            if isinstance(modules[name], kind) and begin < call.ended < end
        ]
        return sorted(found, key=lambda each: -each[2].ended)

    def point(self, module: str, *, is_input: bool) -> Point | None:
        """Returns the point at a module of the plugin's; None where there is none."""
        return next((each for each in self.points if each.module == module and each.is_input == is_input), None)

    def weight(self, name: str) -> Tensor:
        """Returns one of the plugin's weights, under the name that the weight adapter gives it."""
        layer, _, parameter = name.rpartition(".")
        merged = self._merged_around(layer)
        if merged:
            module = self.module.get_submodule(merged.rpartition(".")[0])
            assert isinstance(module, MergedLinear)
            return module.slots()[f"{layer.rpartition('.')[2]}.{parameter}"]
        return self.module.get_parameter(name).detach()

    def _merged_around(self, name: str) -> str | None:
        parent, _, part = name.rpartition(".")
        for sibling, module in self.module.named_modules():
            if isinstance(module, MergedLinear) and sibling.rpartition(".")[0] == parent and part in module.parts:
                return f"{sibling}.merged"
        return None

    def _outputs_of_parts(self) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, module in self.module.named_modules():
            product = self.ours.get(f"{name}.merged")
            if isinstance(module, MergedLinear) and product is not None:
                parent = f"{name.rpartition('.')[0]}."
                results = product.result.split(module.merged.sizes, dim=-1)
                found |= {f"{parent}{part}".lstrip("."): each for part, each in zip(module.parts, results, strict=True)}
        return found


def are_equal(ours: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are the same but for the order of sums."""
    most = max(1e-3, wanted.abs().max().item())
    return bool((ours - wanted).abs().max().item() <= _CLOSE * most)


def _is_reordered(ours: Tensor, wanted: Tensor) -> bool:
    if ours.dim() != 2 or not are_equal(ours.sum(-1), wanted.sum(-1)):
        return False
    order, other = (torch.argsort(tensor[0]) for tensor in (ours, wanted))
    return are_equal(ours[:, order], wanted[:, other])


def _common_module(names: set[str]) -> str:
    columns = zip(*(name.split(".") for name in names), strict=False)
    return ".".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))
