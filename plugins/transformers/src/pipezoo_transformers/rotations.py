"""Rotations of queries and keys that can be left to attention, found while a step without numbers is followed.

transformers' attention modules call a function of their file that rotates queries and keys, and hand what it returns to
attention. Core's attention does both in one kernel. It may do so where, of an attention module,

- the function computes the rotation of half a head with the other, which is seen by random numbers;
- the angles are those of a `RotaryEmbedding`: see `angles`;
- what it returns goes to one call of attention and nowhere else, and what it is given is not written to afterwards.
  Each operation of the step is seen, and each call of attention, so this is known.

The module then runs a copy of its code for which the function's name means another one. transformers' own module is not
changed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence, Set
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipezoo_core.layers import apply_rotary
from pipezoo_transformers.angles import AngleWatch
from pipezoo_transformers.interface import HANDLER, AttentionCall, PagedCalls

__all__ = ["RotationCall", "RotationWatch", "leave_to_attention"]

_HARMLESS = (Tensor.shape, Tensor.dtype, Tensor.device, Tensor.ndim)  # to be asked for
_NUM_TENSORS = 4  # queries, keys, cosines, sines

Rotate = Callable[..., Any]


class RotationCall(NamedTuple):
    """A call of a function that may be a rotation.

    Attributes:
        module: whose code calls it.
        name: of the function there.
        function: itself.
        given: its arguments.
        named: those by name.
        result: what it returned.
        versions: how often its arguments had been written to by then.
        number: of the calls of attention that had been made by then.
    """

    module: nn.Module
    name: str
    function: Rotate
    given: tuple[Any, ...]
    named: dict[str, Any]
    result: tuple[Tensor, Tensor]
    versions: list[int]
    number: int

    @property
    def angles(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines."""
        _, _, cos, sin = self.given[:_NUM_TENSORS]
        return cos, sin


class RotationWatch(TorchFunctionMode):
    """Sees the rotations of a step while it is entered.

    Args:
        modules: that call attention; their code is exchanged for a copy that says what it calls.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self._calls: list[RotationCall] = []
        self._used: set[int] = set()
        self._results: dict[int, Tensor] = {}
        for module in dict.fromkeys(modules):
            if functions := _functions_of(module):
                _exchange(module, {name: self._noting(module, name, each) for name, each in functions.items()})

    def begin(self) -> None:
        """Forgets the calls of a step that came to no end."""
        self._calls.clear()
        self._used.clear()
        self._results.clear()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the function."""
        named = kwargs or {}
        if getattr(function, "__self__", None) not in _HARMLESS:
            self._note_uses((args, tuple(named.values())))
        return function(*args, **named)

    def left_to_attention(self, attention: Sequence[AttentionCall], angles: AngleWatch) -> dict[nn.Module, str]:
        """Returns of each module all of whose calls of attention may do a rotation the name of its function.

        Args:
            attention: its calls in the step.
            angles: watched the same step.
        """
        handed = Counter(id(x) for call in attention for x in (call.query, call.key, call.value))
        once = {each for each, count in handed.items() if count == 1}
        matched: dict[nn.Module, list[RotationCall | None]] = defaultdict(list)
        for number, call in enumerate(attention):
            rotations = (each for each in self._calls if each.number == number)  # since the call before this one
            matched[call.module].append(next((each for each in rotations if self._is_of(each, call, once)), None))
        left: dict[nn.Module, str] = {}
        for module, found in matched.items():
            calls = [each for each in found if each is not None]
            names = {each.name for each in calls}
            made = [each for each in self._calls if each.module is module and each.name in names]
            is_matched = len(calls) == len(found) == len(made) and len(names) == 1
            if is_matched and all(angles.of(each.angles) and _is_rotation(each) for each in calls):
                left[module] = calls[0].name
        return left

    def _is_of(self, rotation: RotationCall, attention: AttentionCall, handed_once: Set[int]) -> bool:
        """Whether it is what a call of attention is handed, and no other call nor operation is."""
        query, key = rotation.result
        results = {id(query), id(key)}
        is_handed_on = attention.query is query and attention.key is key and rotation.module is attention.module
        is_as_given = _versions(rotation.given) == rotation.versions
        return is_handed_on and is_as_given and results <= handed_once and not self._used & results

    def _noting(self, module: nn.Module, name: str, function: Rotate) -> Rotate:
        def note(*given: Any, **named: Any) -> Any:
            result = function(*given, **named)
            if _may_be_rotation(given, named, result):
                number = len(getattr(module, HANDLER))
                call = RotationCall(module, name, function, given, named, result, _versions(given), number)
                self._calls.append(call)
                self._results |= {id(x): x for x in result}  # kept: nothing else gets their identity
            return result

        return note

    def _note_uses(self, value: Any) -> None:
        if isinstance(value, Tensor):
            if id(value) in self._results:
                self._used.add(id(value))
        elif isinstance(value, list | tuple):
            for each in value:
                self._note_uses(each)


def leave_to_attention(module: nn.Module, name: str, calls: PagedCalls) -> None:
    """Makes an attention module hand queries and keys on as they are, and their rotation to what computes attention.

    Args:
        module: of transformers.
        name: of the function that rotates, in its code.
        calls: compute its attention.
    """

    def hand_on(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        calls.rotate(query, key, (cos[0], sin[0]))
        return query, key

    _exchange(module, {name: hand_on})


def _functions_of(module: nn.Module) -> dict[str, Rotate]:
    """Returns the functions of its file that a module's `forward` calls; none where that has been exchanged already."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or "forward" in vars(module):
        return {}
    named = {name: forward.__globals__.get(name) for name in forward.__code__.co_names}
    return {name: value for name, value in named.items() if isinstance(value, FunctionType)}


def _exchange(module: nn.Module, functions: dict[str, Rotate]) -> None:
    """Makes a module run a copy of its code, in which some names mean other functions."""
    forward: Any = type(module).forward
    names = {**forward.__globals__, **functions}
    twin = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    twin.__kwdefaults__ = forward.__kwdefaults__
    object.__setattr__(module, "forward", MethodType(twin, module))


def _may_be_rotation(given: tuple[Any, ...], named: dict[str, Any], result: Any) -> bool:
    """Whether what is given and returned has the shapes of a rotation, and nothing more matters to it."""
    tensors, others = given[:_NUM_TENSORS], (*given[_NUM_TENSORS:], *named.values())
    if len(tensors) < _NUM_TENSORS or not all(isinstance(x, Tensor) and x.is_floating_point() for x in tensors):
        return False
    if any(isinstance(other, Tensor) for other in others) or not isinstance(result, tuple) or len(result) != 2:
        return False
    query, key, cos, sin = tensors
    is_alike = [x.shape if isinstance(x, Tensor) else None for x in result] == [query.shape, key.shape]
    has_angles = cos.shape == sin.shape and cos.dim() == 3 and cos.shape[:2] == (1, query.shape[-2])
    return is_alike and query.dim() == 4 and has_angles


def _versions(given: tuple[Any, ...]) -> list[int]:
    return [x._version for x in given[:_NUM_TENSORS]]


@torch.no_grad()
def _is_rotation(call: RotationCall) -> bool:
    """Whether a function rotates the first numbers of a head, their halves as pairs, seen by random numbers."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    shapes = [x.shape for x in call.given[:_NUM_TENSORS]]
    q, k, cos, sin = (torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") for shape in shapes)
    if cos.shape[-1] % 2:
        return False
    cos, sin = (torch.cat([x.chunk(2, dim=-1)[0]] * 2, dim=-1) for x in (cos, sin))
    with torch.device("cpu"):
        try:
            found = call.function(q.clone(), k.clone(), cos, sin, *call.given[_NUM_TENSORS:], **call.named)
            return all(
                torch.allclose(rotated, _rotated(x, cos[0], sin[0]), rtol=1e-5, atol=1e-5)
                for rotated, x in zip(found, (q, k), strict=True)
            )
        except Exception:  # a function of any other kind
            return False


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rows = apply_rotary(x[0].transpose(0, 1).flatten(1), cos, sin, x.shape[-1])
    return rows.unflatten(-1, (x.shape[1], -1)).transpose(0, 1).unsqueeze(0)
