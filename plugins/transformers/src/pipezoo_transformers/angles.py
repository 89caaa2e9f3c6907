"""Which modules of transformers give the angles of a `RotaryEmbedding`, found by computing with them.

They differ in where their frequencies come from, which core need not know: they lie in a buffer.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipezoo_core.layers import RotaryEmbedding

__all__ = ["AngleWatch", "Angles", "RowsRotary", "angles_like"]

_POSITIONS = (0, 1, 2, 5, 17, 100, 1000)  # the first one gives the factor
_WHATEVER = {"rope_type": "default", "rope_theta": 10000.0}  # of a module whose frequencies are given to it


class AngleCall(NamedTuple):
    """A call of a module that returned cosines and sines, say.

    Attributes:
        module: that was called.
        given: its arguments.
        named: those by name.
        result: what it returned.
    """

    module: nn.Module
    given: tuple[Any, ...]
    named: dict[str, Any]
    result: tuple[Tensor, Tensor]

    @property
    def kind(self) -> str | None:
        """Which of several kinds of layers it was asked for."""
        kind = self.named.get("layer_type", self.given[2] if len(self.given) > 2 else None)
        return kind if isinstance(kind, str) else None

    @property
    def has_positions_alone(self) -> bool:
        """Whether it was given positions [1, T], and nothing else that matters but the kind of layers."""
        names = ("x", "position_ids", "layer_type")
        arguments = dict(zip(names, self.given, strict=False)) | self.named
        positions = arguments.get("position_ids")
        is_known = len(self.given) <= len(names) and arguments.keys() <= set(names)
        return is_known and isinstance(positions, Tensor) and positions.dim() == 2


class Angles(NamedTuple):
    """What cosines and sines are computed of.

    Attributes:
        frequencies: half as many as a head has rotated numbers.
        scaling: factor of both.
    """

    frequencies: tuple[float, ...]
    scaling: float


class AngleWatch:
    """Notes which modules return two tensors in a step.

    Args:
        model: whose modules are watched from now on.
    """

    def __init__(self, model: nn.Module) -> None:
        self._calls: list[AngleCall] = []
        self._found: dict[tuple[nn.Module, str | None], Angles | None] = {}
        for module in model.modules():
            if any(buffer.dim() == 1 for buffer in module._buffers.values() if buffer is not None):
                module.register_forward_hook(self._note, with_kwargs=True)

    def begin(self) -> None:
        """Forgets the calls of a step that came to no end."""
        self._calls.clear()

    def of(self, result: tuple[Tensor, Tensor]) -> Angles | None:
        """Returns what cosines and sines are computed of that a module returned; None where that is unknown."""
        cos, sin = result
        calls = (call for call in self._calls if call.result[0] is cos and call.result[1] is sin)
        return next((self._angles(call) for call in calls), None)

    def known(self) -> dict[nn.Module, dict[str | None, Angles]]:
        """Returns the modules that do nothing but compute angles, and of what they do it."""
        found: dict[nn.Module, list[tuple[str | None, Angles | None]]] = defaultdict(list)
        for call in self._calls:
            found[call.module].append((call.kind, self._angles(call)))
        return {
            module: {kind: angles for kind, angles in kinds if angles is not None}
            for module, kinds in found.items()
            if all(angles is not None for _, angles in kinds)
        }

    def _angles(self, call: AngleCall) -> Angles | None:
        """Tries a module once for each kind of layers."""
        if not call.has_positions_alone:
            return None
        key = call.module, call.kind
        if key not in self._found:
            self._found[key] = angles_like(call.module, call.kind)
        return self._found[key]

    def _note(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
        if isinstance(result, tuple) and len(result) == 2 and all(isinstance(x, Tensor) for x in result):
            self._calls.append(AngleCall(module, given, named, result))


class RowsRotary(nn.Module):
    """`RotaryEmbedding`s, called as transformers' module is.

    Args:
        angles: by the kind of layers; of a module that knows no kinds by None.
    """

    def __init__(self, angles: dict[str | None, Angles]) -> None:
        super().__init__()
        self._names = {kind: f"rotary_{number}" for number, kind in enumerate(angles)}
        for kind, name in self._names.items():
            size = 2 * len(angles[kind].frequencies)
            rotary = RotaryEmbedding(_WHATEVER, size, 1)
            frequencies = torch.tensor(angles[kind].frequencies, dtype=torch.float32, device="cpu")
            rotary.inverse_frequencies = frequencies
            rotary.attention_scaling = angles[kind].scaling
            self.add_module(name, rotary)

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
        """Maps positions [1, T] to cosines and sines [1, T, size], of the dtype of x."""
        positions = position_ids[0]
        cos, sin = self.get_submodule(self._names[layer_type])(positions, positions, x.dtype)
        return cos.unsqueeze(0), sin.unsqueeze(0)


@torch.no_grad()
def angles_like(module: nn.Module, kind: str | None = None) -> Angles | None:
    """Returns of what a module computes cosines and sines; None where it is not positions and frequencies alone.

    Args:
        module: of transformers, with its buffers on the CPU.
        kind: of layers, where it is asked for one of several.
    """
    kinds = {} if kind is None else {"layer_type": kind}
    with torch.device("cpu"):
        positions = torch.tensor([_POSITIONS], dtype=torch.int64, device="cpu")
        try:
            x = torch.zeros(1, len(_POSITIONS), 1, dtype=torch.float32, device="cpu")
            cos, sin = module.forward(x, position_ids=positions, **kinds)  # without hooks, which would note it
        except Exception:  # a module of any other kind
            return None
        if not (_has_numbers(cos) and _has_numbers(sin)):
            return None
        scaling = float(cos.flatten()[0])
        for frequencies in filter(_has_numbers, module.buffers()):
            if frequencies.dim() == 1 and 2 * len(frequencies) == cos.shape[-1]:
                angles = positions.unsqueeze(-1).float() * frequencies.float()
                angles = torch.cat((angles, angles), dim=-1)
                if _is_near(cos, scaling * angles.cos()) and _is_near(sin, scaling * angles.sin()):
                    return Angles(tuple(frequencies.float().tolist()), scaling)
    return None


def _has_numbers(x: Any) -> bool:
    if not isinstance(x, Tensor) or x.device.type != "cpu":
        return False
    return x.is_floating_point() and x.dim() > 0 and x.numel() > 0


def _is_near(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other, rtol=1e-5, atol=1e-5)
