"""Which norms of transformers are core's, found by computing with them: their classes have a name in every model."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pipezoo_core.layers import LayerNorm, RMSNorm

__all__ = ["norm_like"]

_EPS = ("eps", "epsilon", "variance_epsilon")
_OFFSETS = (0.0, 1.0)
_SCALES = (1.0, 1e-3)  # of the second, eps is a part of the result
_NUM_ROWS = 3


def norm_like(module: nn.Module) -> nn.Module | None:
    """Returns core's layer that computes what a module does, on the meta device; None where there is none."""
    if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
        has_weight, has_bias = module.weight is not None, module.bias is not None
        return LayerNorm(module.normalized_shape[0], module.eps, weight=has_weight, bias=has_bias)
    weight = module._parameters.get("weight")
    eps = next((module.__dict__[name] for name in _EPS if isinstance(module.__dict__.get(name), float)), None)
    if eps is None or weight is None or weight.dim() != 1 or [*module.parameters()] != [weight] or [*module.buffers()]:
        return None
    return next((RMSNorm(len(weight), eps, offset) for offset in _OFFSETS if _is_norm(module, eps, offset)), None)


@torch.no_grad()
def _is_norm(module: nn.Module, eps: float, offset: float) -> bool:
    """Whether a module computes an RMSNorm, seen by a few rows of random numbers."""
    size = len(module._parameters["weight"] if module._parameters["weight"] is not None else ())
    generator = torch.Generator(device="cpu").manual_seed(0)
    with torch.device("cpu"):
        norm, its = RMSNorm(size, eps, offset), copy.copy(module)
        norm.weight = nn.Parameter(
            torch.rand(size, generator=generator, dtype=torch.float32, device="cpu") + 0.5, requires_grad=False
        )
        its._parameters = {"weight": norm.weight}
        for scale in _SCALES:
            x = scale * torch.randn(1, _NUM_ROWS, size, generator=generator, dtype=torch.float32, device="cpu")
            try:
                found = its(x)
            except Exception:  # a module of any other kind
                return False
            if not isinstance(found, torch.Tensor) or not torch.allclose(found, norm(x), rtol=1e-4, atol=1e-5):
                return False
    return True
