"""What each layer's attention computes, found by one step without numbers through transformers' class."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.errors import PipezooError, UnsupportedModelError
from pipezoo_core.layers import MergedLinear
from pipezoo_transformers.angles import Angles, AngleWatch, RowsRotary
from pipezoo_transformers.experts import alive_in_experts
from pipezoo_transformers.followed_step import NUM_TOKENS, followed
from pipezoo_transformers.interface import ASKING, NUM_CHOSEN, AttentionCall
from pipezoo_transformers.masks import CAUSAL, sight_of
from pipezoo_transformers.mixtures import Mixture, mixture_like
from pipezoo_transformers.outline import OUTSIDE, body_of, outline_of_transformers
from pipezoo_transformers.replacements import replace_layers
from pipezoo_transformers.rotations import RotationWatch
from pipezoo_transformers.watched_linear import LinearWatch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["Layers", "layers_of"]

_MAX_SHOWN = 300  # characters


@dataclass(frozen=True, slots=True)
class Layers:
    """What a step goes through.

    Attributes:
        names: of the attention modules, in the order in which a step calls them; twice where it does so twice.
        specs: what each call computes.
        kept: linear layers whose weight other code than their own uses.
        widest: the most numbers per token that a linear layer besides the head reads or writes.
        in_experts: the most numbers per token that are alive in a mixture of experts that transformers computes.
        mixtures: those that core computes, by the names of their modules.
        merged: linear layers of one module that read the same numbers; None where no layers can be joined to one.
        merged_widest: the most numbers per token that linear layers write that are joined to one.
        rotations: of attention modules whose rotation is left to attention, the function that they call for it.
        angles: of the modules that give the angles, by the kind of layers, those that core computes.
    """

    names: tuple[str, ...]
    specs: tuple[AttentionSpec, ...]
    kept: frozenset[str]
    widest: int
    in_experts: int
    mixtures: Mapping[str, Mixture] = field(default_factory=dict)
    merged: tuple[tuple[str, ...], ...] | None = None
    merged_widest: int = 0
    rotations: Mapping[str, str] = field(default_factory=dict)
    angles: Mapping[str, dict[str | None, Angles]] = field(default_factory=dict)


def layers_of(config: PretrainedConfig, max_length: int) -> Layers:
    """Follows a step of a model, and then one of the same model with core's layers in it.

    Args:
        config: of the model.
        max_length: of a request.

    Raises:
        UnsupportedModelError: a layer computes what pages cannot serve, or keeps something else of earlier tokens.
    """
    model = outline_of_transformers(config, ASKING)
    body = body_of(model)
    if convolution := next((module for module in body.modules() if isinstance(module, nn.Conv1d)), None):
        raise UnsupportedModelError("the model keeps a state of earlier tokens", found=type(convolution).__name__)
    if any(hasattr(module, "create_position_ids_from_input_ids") for module in body.modules()):
        raise UnsupportedModelError(
            "the model counts positions by which tokens are padding", found=type(model).__name__
        )
    names = {module: name for name, module in model.named_modules()}
    widths = [size for module in body.modules() if isinstance(module, nn.Linear) for size in module.weight.shape]
    watch = LinearWatch(body)
    try:
        calls = followed(body, partial(_read, max_length=max_length), watch.begin)
    except PipezooError:
        raise
    except Exception as error:  # transformers' code may fail in any way where it is not given what it expects
        if not model._supports_attention_backend:
            raise UnsupportedModelError(OUTSIDE, found=type(model).__name__) from error
        raise UnsupportedModelError(
            "the model's step cannot be followed", found=f"{type(error).__name__}: {error}"[:_MAX_SHOWN]
        ) from error
    if not calls:
        raise UnsupportedModelError(OUTSIDE, found=type(model).__name__)
    if len(calls) < config.num_hidden_layers:
        raise UnsupportedModelError(
            "not every layer of the model has attention", found=f"{len(calls)} of {config.num_hidden_layers}"
        )
    layers = Layers(
        names=tuple(names[call.module] for call, _ in calls),
        specs=tuple(spec for _, spec in calls),
        widest=max(widths, default=config.hidden_size),
        in_experts=_alive_in_experts(model, {}),
        kept=frozenset(names[module] for module in watch.asked),
    )
    wanted, mixtures = [replace(layers, merged=_groups(model, watch))], _mixtures(model)
    if mixtures:
        wanted.insert(0, replace(wanted[0], in_experts=_alive_in_experts(model, mixtures), mixtures=mixtures))
    return next(filter(None, (_joined(config, layers, each, max_length) for each in wanted)), layers)


def _asked_for_experts(model: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Yields the modules that were asked for what experts make of tokens, and for how many of each token."""
    for name, module in model.named_modules():
        if hasattr(module, NUM_CHOSEN):
            yield name, module, getattr(module, NUM_CHOSEN)


def _alive_in_experts(model: nn.Module, mixtures: Mapping[str, Mixture]) -> int:
    of_transformers = (each for each in _asked_for_experts(model) if each[0] not in mixtures)
    return max((alive_in_experts(module, num_chosen) for _, module, num_chosen in of_transformers), default=0)


def _mixtures(model: nn.Module) -> dict[str, Mixture]:
    times = Counter(module for _, module in model.named_modules(remove_duplicate=False))  # more where layers share it
    found = (
        (name, mixture_like(module, num_chosen))
        for name, module, num_chosen in _asked_for_experts(model)
        if times[module] == 1
    )
    return {name: mixture for name, mixture in found if mixture is not None}


def _groups(model: PreTrainedModel, watch: LinearWatch) -> tuple[tuple[str, ...], ...]:
    """Returns the names of linear layers that can be merged: of one module, all with a bias or all without."""
    names = {module: name for name, module in model.named_modules()}
    tied = {name.rpartition(".")[0] for pair in model.all_tied_weights_keys.items() for name in pair}
    groups: dict[tuple[int, str, bool], list[str]] = defaultdict(list)
    for number, alike in enumerate(watch.alike()):
        for layer in alike:
            name, has_bias = names[layer], layer._parameters["bias"] is not None
            if name not in tied:
                groups[number, name.rpartition(".")[0], has_bias].append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _joined(config: PretrainedConfig, layers: Layers, wanted: Layers, max_length: int) -> Layers | None:
    """Returns what is wanted of a model, and what more can be joined; None where it fails or does another thing so.

    Args:
        config: of the model.
        layers: with transformers' modules in it.
        wanted: the same with more of core's.
        max_length: of a request.
    """
    model = outline_of_transformers(config, ASKING)
    with torch.device("meta"):
        replace_layers(model, wanted.kept, wanted.merged, {name: each.alone for name, each in wanted.mixtures.items()})
    watch = RotationWatch([model.get_submodule(name) for name in layers.names])
    angles = AngleWatch(model)
    names = {module: name for name, module in model.named_modules()}
    read = partial(_read, max_length=max_length)

    def is_the_same(calls: list[tuple[AttentionCall, AttentionSpec]]) -> bool:
        return [(names[call.module], spec) for call, spec in calls] == [*zip(layers.names, layers.specs, strict=True)]

    try:
        with watch:
            calls = followed(body_of(model), read, watch.begin, angles.begin)
        rotations = watch.left_to_attention([call for call, _ in calls], angles)
        known = {names[module]: kinds for module, kinds in angles.known().items()}
    except Exception:  # transformers' code may ask a linear layer for what a part of one has not, or anything else
        return None
    if not is_the_same(calls):
        return None
    in_mixtures = {part for name in wanted.mixtures for part in model.get_submodule(name).modules()}
    joint = [module for module in model.modules() if isinstance(module, MergedLinear) and module not in in_mixtures]
    joined = replace(
        wanted,
        merged_widest=max((sum(module.parts.values()) for module in joint), default=0),
        rotations={names[module]: name for module, name in rotations.items()},
    )
    for name, kinds in known.items():
        model.set_submodule(name, RowsRotary(kinds).to(next(model.parameters()).device))
    try:
        calls = followed(body_of(model), read)
    except Exception:  # it may ask the module that gives the angles for something else
        return joined
    return replace(joined, angles=known) if is_the_same(calls) else joined


def _read(calls: list[AttentionCall], max_length: int) -> list[tuple[AttentionCall, AttentionSpec]]:
    return [(call, _spec(call, max_length)) for call in calls]


def _spec(call: AttentionCall, max_length: int) -> AttentionSpec:
    name = type(call.module).__name__
    _, num_heads, num_rows, head_dim = call.query.shape
    _, num_kv_heads, num_keys, key_dim = call.key.shape
    _, _, num_values, value_dim = call.value.shape
    if num_rows != NUM_TOKENS or num_keys != num_rows or num_values != num_rows or key_dim != head_dim:
        raise UnsupportedModelError(
            f"the model's {name} does not attend from a step's tokens to its tokens",
            found=f"queries {list(call.query.shape)}, keys {list(call.key.shape)}, values {list(call.value.shape)}",
        )
    scale = call.keywords.get("scaling", head_dim**-0.5)
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise UnsupportedModelError(f"the scale of the model's {name} is no number", found=str(scale))
    sight = CAUSAL if call.mask is None else sight_of(call.mask.function, call.mask.size, max_length)
    window = call.keywords.get("sliding_window")
    if call.mask is None and window is not None:
        raise UnsupportedModelError(f"the model's {name} has a window, and no mask says which", found=window)
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=float(scale),
        sliding_window=sight.sliding_window,
        chunk=sight.chunk,
        value_dim=None if value_dim == head_dim else value_dim,
        softcap=call.keywords.get("softcap"),
        has_sinks="s_aux" in call.keywords,
    )
