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
from pipezoo_transformers.outline import body_of, outline_of_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["Layers", "layers_of"]

_NUM_TOKENS = 7


@dataclass(frozen=True, slots=True)
class Layers:
    """What a step goes through.

    Attributes:
        specs: of the attention modules by their names, in the order in which a step calls them.
        widest: the most numbers per token that a linear layer besides the head reads or writes.
    """

    specs: dict[str, AttentionSpec]
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
    _, body = body_of(model)
    calls: list[AttentionCall] = []
    for module in body.modules():
        object.__setattr__(module, HANDLER, calls)
        if isinstance(module, nn.Conv1d):
            raise UnsupportedModelError("the model keeps a state of earlier tokens", found=f"a convolution over them")
    tokens = torch.zeros(1, _NUM_TOKENS, dtype=torch.int64, device="meta")
    try:
        with torch.no_grad(), torch.device("meta"):
            body(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                position_ids=torch.zeros_like(tokens),
                use_cache=False,
            )
    except PipezooError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            "the model's step cannot be followed without its numbers", found=f"{type(error).__name__}: {error}"[:300]
        ) from error
    names = {module: name for name, module in model.named_modules()}
    specs = _checked({names[call.module]: _spec(call, max_length) for call in calls}, len(calls), config)
    widths = [size for module in body.modules() if isinstance(module, nn.Linear) for size in module.weight.shape]
    return Layers(specs, max(widths, default=config.hidden_size))


def _checked(
    specs: dict[str, AttentionSpec], num_calls: int, config: PretrainedConfig
) -> dict[str, AttentionSpec]:
    expected = config.num_hidden_layers
    if not num_calls:
        raise UnsupportedModelError("the model's attention is not computed through transformers' attention interface")
    if len(specs) < num_calls:
        raise UnsupportedModelError(
            "a layer's attention is computed more than once in a step", found=f"{num_calls} calls of {len(specs)} layers"
        )
    if num_calls != expected:
        raise UnsupportedModelError(
            "not every layer of the model has attention", found=f"{num_calls} of {expected} layers"
        )
    return specs


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
