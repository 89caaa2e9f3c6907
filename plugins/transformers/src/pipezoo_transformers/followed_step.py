"""A step without numbers through a model of transformers, in which the calls of attention are noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from pipezoo_core.errors import PipezooError
from pipezoo_transformers.interface import HANDLER, AttentionCall

__all__ = ["NUM_TOKENS", "followed"]

NUM_TOKENS = 7

Found = TypeVar("Found")


def followed(body: nn.Module, read: Callable[[list[AttentionCall]], Found], *begin: Callable[[], None]) -> Found:
    """Follows a step; where a branch or a mask depends on numbers, one whose numbers are zeros.

    Args:
        body: of the model, on the meta device.
        read: makes what is wanted of the calls of attention.
        begin: are called before a step, of which there may be two: the first one counts for nothing then.
    """
    try:
        return read(_calls(body, "meta", begin))
    except PipezooError:
        raise
    except Exception:  # there are as many as ways to ask for a number
        for module in body.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:  # takes the memory of a single number
                    zeros = torch.zeros((), dtype=parameter.dtype, device="cpu").expand(parameter.shape)
                    module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
    with _ZeroProducts():
        return read(_calls(body, "cpu", begin))


def _calls(body: nn.Module, device: str, begin: tuple[Callable[[], None], ...]) -> list[AttentionCall]:
    calls: list[AttentionCall] = []
    for each in begin:
        each()
    for module in body.modules():
        object.__setattr__(module, HANDLER, calls)
    with torch.inference_mode(mode=False), torch.no_grad(), torch.device(device):  # it is noted what is written to
        tokens = torch.zeros(1, NUM_TOKENS, dtype=torch.int64, device=device)
        positions = torch.arange(NUM_TOKENS, dtype=torch.int64, device=device).unsqueeze(0)
        body(input_ids=tokens, attention_mask=torch.ones_like(tokens), position_ids=positions, use_cache=False)
    return calls


class _ZeroProducts(TorchFunctionMode):
    """Computes no product of a linear layer, whose weight and bias are zeros: it would take seconds for each layer."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the function."""
        if function is not F.linear:
            return function(*args, **(kwargs or {}))
        x, weight = args[:2]
        return x.new_zeros(*x.shape[:-1], weight.shape[0])
