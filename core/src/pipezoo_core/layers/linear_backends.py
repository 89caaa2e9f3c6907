"""Ways to compute linear layers, chosen once, after the weights are loaded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipezoo_core.config import LinearName
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.layers.linear import Linear
from pipezoo_core.layers.mlp import GatedMLP
from pipezoo_core.layers.norm import RMSNorm
from pipezoo_core.layers.rotary import RotaryEmbedding
from pipezoo_core.native import NativeKernels

__all__ = ["NativeProduct", "OneDNNProduct", "use_linear_backend"]

_TYPICAL_ROWS = 512  # oneDNN chooses the weights' layout for so many rows; it serves any number as well


class OneDNNProduct:
    """`x Wᵀ + b` by oneDNN, with W reordered once into the layout its kernels read.

    Plain `F.linear` reads W as it lies and, in float32 on a CPU, leaves the product to MKL.

    Args:
        weight: [out_features, in_features], float32 or bfloat16, on a CPU. Copied.
        bias: [out_features], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _TYPICAL_ROWS)
        self._bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return product


class NativeProduct:
    """`x Wᵀ + b` by the kernels of `pipezoo-kernels`, with W packed once into the panels they read.

    Args:
        kernels: compute it.
        weight: [out_features, in_features], in_features even. Copied.
        bias: [out_features], or None.
    """

    def __init__(self, kernels: NativeKernels, weight: Tensor, bias: Tensor | None) -> None:
        self._kernels = kernels
        self._packed = kernels.pack(weight.detach())
        self._bias = None if bias is None else bias.detach()
        self._out_features = len(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        return self._kernels.linear(x, self._packed, self._bias, self._out_features)


def use_linear_backend(
    name: LinearName, module: nn.Module, device: torch.device, dtype: torch.dtype, kernels: NativeKernels
) -> None:
    """Makes all `Linear`s of a loaded module compute with a backend; for `auto` the fastest one.

    One layer is converted after the other, so that there are never two copies of all weights.

    Raises:
        InvalidSettingError: the backend was asked for by name and cannot be used here.
    """
    obstacles = {LinearName.native: kernels.obstacle, LinearName.onednn: _why_not_onednn(device, dtype)}
    if name is LinearName.auto:
        name = next((usable for usable, obstacle in obstacles.items() if obstacle is None), LinearName.torch)
    if obstacle := obstacles.get(name):
        raise InvalidSettingError(
            f"setting 'linear' cannot be {name.value!r} here", found=obstacle, cure="Leave it at auto."
        )
    if name is LinearName.native:
        _use_native(module, kernels)
    elif name is LinearName.onednn:
        for layer in module.modules():
            if isinstance(layer, Linear):
                layer.compute_with(OneDNNProduct(layer.weight, layer.bias))


def _use_native(module: nn.Module, kernels: NativeKernels) -> None:
    for layer in module.modules():
        if isinstance(layer, Linear) and layer.weight.shape[1] % 2 == 0:  # bfloat16 products take two at a time
            layer.compute_with(NativeProduct(kernels, layer.weight, layer.bias))
        elif isinstance(layer, RMSNorm | GatedMLP | RotaryEmbedding):
            layer.compute_with(kernels)


def _why_not_onednn(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return f"oneDNN is not available for {device}"
    if torch.cpu.get_capabilities().get("architecture") != "x86_64":
        return "it is for x86 CPUs"
    if dtype is torch.float32 or (dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return None
    return f"oneDNN computes float32 and bfloat16 where the CPU has instructions for it, not {dtype} here"
