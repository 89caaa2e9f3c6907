"""What each layer's attention computes, found by one step without numbers through transformers' class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.errors import PipezooError, UnsupportedModelError
from pipezoo_transformers.interface import ASKING, HANDLER, AttentionCall
from pipezoo_transformers.masks import CAUSAL, sight_of
from pipezoo_transformers.outline import OUTSIDE, body_of, outline_of_transformers
from pipezoo_transformers.watched_linear import watch_linears

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["Layers", "layers_of"]

_MAX_SHOWN = 300  # characters
_NUM_TOKENS = 7


@dataclass(frozen=True, slots=True)
class Layers:
    """What a step goes through.

    Attributes:
        names: of the attention modules, in the order in which a step calls them; twice where it does so twice.
        specs: what each call computes.
        kept: linear layers whose weight other code than their own uses.
        widest: the most numbers per token that a linear layer besides the head reads or writes.
    """

    names: tuple[str, ...]
    specs: tuple[AttentionSpec, ...]
    kept: frozenset[str]
    widest: int


def layers_of(config: PretrainedConfig, max_length: int) -> Layers:
    """Follows a step of a model.

    Args:
        config: of the model.
        max_length: of a request.

    Raises:
        UnsupportedModelError: a layer computes what pages cannot serve, or keeps something else of earlier tokens.
    """
    model = outline_of_transformers(config, ASKING, ASKING)
    body = body_of(model)
    if convolution := next((module for module in body.modules() if isinstance(module, nn.Conv1d)), None):
        raise UnsupportedModelError("the model keeps a state of earlier tokens", found=type(convolution).__name__)
    if any(hasattr(module, "create_position_ids_from_input_ids") for module in body.modules()):
        raise UnsupportedModelError(
            "the model counts positions by which tokens are padding", found=type(model).__name__
        )
    names = {module: name for name, module in model.named_modules()}
    widths = [size for module in body.modules() if isinstance(module, nn.Linear) for size in module.weight.shape]
    asked = watch_linears(body)
    try:
        found = _followed(body, max_length)
    except PipezooError:
        raise
    except Exception as error:  # transformers' code may fail in any way where it is not given what it expects
        if not model._supports_attention_backend:
            raise UnsupportedModelError(OUTSIDE, found=type(model).__name__) from error
        raise UnsupportedModelError(
            "the model's step cannot be followed", found=f"{type(error).__name__}: {error}"[:_MAX_SHOWN]
        ) from error
    if not found:
        raise UnsupportedModelError(OUTSIDE, found=type(model).__name__)
    if len(found) < config.num_hidden_layers:
        raise UnsupportedModelError(
            "not every layer of the model has attention", found=f"{len(found)} of {config.num_hidden_layers}"
        )
    return Layers(
        names=tuple(names[module] for module, _ in found),
        specs=tuple(spec for _, spec in found),
        widest=max(widths, default=config.hidden_size),
        kept=frozenset(names[module] for module in asked),
    )


def _followed(body: nn.Module, max_length: int) -> list[tuple[nn.Module, AttentionSpec]]:
    """Returns the calls of attention in a step; where a branch depends on numbers, of one whose numbers are zeros."""
    try:
        return _followed_on(body, max_length, "meta")
    except PipezooError:
        raise
    except Exception:  # there are as many as ways to ask for a number
        for module in body.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:  # takes the memory of a single number
                    zeros = torch.zeros((), dtype=parameter.dtype, device="cpu").expand(parameter.shape)
                    module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
    return _followed_on(body, max_length, "cpu")


def _followed_on(body: nn.Module, max_length: int, device: str) -> list[tuple[nn.Module, AttentionSpec]]:
    calls: list[AttentionCall] = []
    for module in body.modules():
        object.__setattr__(module, HANDLER, calls)
    tokens = torch.zeros(1, _NUM_TOKENS, dtype=torch.int64, device=device)
    positions = torch.arange(_NUM_TOKENS, dtype=torch.int64, device=device).unsqueeze(0)
    with torch.no_grad(), torch.device(device):
        body(input_ids=tokens, attention_mask=torch.ones_like(tokens), position_ids=positions, use_cache=False)
    return [(call.module, _spec(call, max_length)) for call in calls]


def _spec(call: AttentionCall, max_length: int) -> AttentionSpec:
    name = type(call.module).__name__
    _, num_heads, num_rows, head_dim = call.query
    _, num_kv_heads, num_keys, key_dim = call.key
    if num_rows != _NUM_TOKENS or num_keys != num_rows or call.value[2] != num_rows or key_dim != head_dim:
        raise UnsupportedModelError(
            f"the model's {name} does not attend from a step's tokens to its tokens",
            found=f"queries {list(call.query)}, keys {list(call.key)}, values {list(call.value)}",
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
        value_dim=None if call.value[3] == head_dim else call.value[3],
        softcap=call.keywords.get("softcap"),
        has_sinks="s_aux" in call.keywords,
    )
