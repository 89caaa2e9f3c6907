"""A step without numbers through a model of transformers, in which the calls of attention are noted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pipezoo_core.errors import PipezooError
from pipezoo_transformers.interface import HANDLER, AttentionCall

__all__ = ["NUM_TOKENS", "followed"]

NUM_TOKENS = 7


def followed(body: nn.Module, *begin: Callable[[], None]) -> list[AttentionCall]:
    """Returns the calls of attention in a step; where a branch depends on numbers, of one whose numbers are zeros.

    Args:
        body: of the model, on the meta device.
        begin: are called before a step, of which there may be two: the first one counts for nothing then.
    """
    try:
        return _followed_on(body, "meta", begin)
    except PipezooError:
        raise
    except Exception:  # there are as many as ways to ask for a number
        for module in body.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:  # takes the memory of a single number
                    zeros = torch.zeros((), dtype=parameter.dtype, device="cpu").expand(parameter.shape)
                    module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
    return _followed_on(body, "cpu", begin)


def _followed_on(body: nn.Module, device: str, begin: tuple[Callable[[], None], ...]) -> list[AttentionCall]:
    calls: list[AttentionCall] = []
    for each in begin:
        each()
    for module in body.modules():
        object.__setattr__(module, HANDLER, calls)
    tokens = torch.zeros(1, NUM_TOKENS, dtype=torch.int64, device=device)
    positions = torch.arange(NUM_TOKENS, dtype=torch.int64, device=device).unsqueeze(0)
    with torch.no_grad(), torch.device(device):
        body(input_ids=tokens, attention_mask=torch.ones_like(tokens), position_ids=positions, use_cache=False)
    return calls
