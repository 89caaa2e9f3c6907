"""Parameters that stay float32 in a model of another precision."""

import torch
from torch import nn

from pipezoo_core.layers import Linear, float32_parameters, set_dtype
from pipezoo_core.weights import LazyTensor, load_module


class Router(nn.Module):
    keeps_float32 = ("weight",)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 4))
        self.scale = nn.Parameter(torch.empty(3))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = Router()
        self.up = Linear(4, 4)


def test_is_float32_through_loading_and_in_the_outline():
    with torch.device("meta"):
        outline, module = Layer(), Layer()
    set_dtype(outline, torch.bfloat16)
    tensors = {name: torch.randn(parameter.shape) for name, parameter in module.named_parameters()}
    lazy = {name: LazyTensor(tuple(t.shape), t.dtype, lambda rows, t=t: t[rows]) for name, t in tensors.items()}
    load_module(module, lazy, torch.device("cpu"), torch.bfloat16)
    for found in (outline, module):
        dtypes = {name: parameter.dtype for name, parameter in found.named_parameters()}
        assert dtypes == {
            "router.weight": torch.float32, "router.scale": torch.bfloat16, "up.weight": torch.bfloat16
        }  # fmt: skip
    assert torch.equal(module.router.weight, tensors["router.weight"])
    assert torch.equal(module.up.weight, tensors["up.weight"].bfloat16())
    assert float32_parameters(module) == {module.router.weight}
