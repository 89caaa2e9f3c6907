"""Ways to compute linear layers, chosen once, after the weights are loaded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipezoo_core.config import LinearName
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.layers.linear import Linear

__all__ = ["OneDNNProduct", "use_linear_backend"]

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


def use_linear_backend(name: LinearName, module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Makes all `Linear`s of a loaded module compute with a backend; for `auto` the fastest one.

    One layer is converted after the other, so that there are never two copies of all weights.

    Raises:
        InvalidSettingError: the backend was asked for by name and cannot be used here.
    """
    usable = _onednn_is_usable(device, dtype)
    if name is LinearName.onednn and not usable:
        raise InvalidSettingError(
            "setting 'linear' is not usable here",
            found=f"onednn for {dtype} on {device}",
            allowed="float32 or bfloat16 on an x86 CPU that has instructions for it",
            cure="Leave it at auto.",
        )
    if name is LinearName.torch or not usable:
        return
    for layer in module.modules():
        if isinstance(layer, Linear):
            layer.compute_with(OneDNNProduct(layer.weight, layer.bias))


def _onednn_is_usable(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if torch.cpu.get_capabilities().get("architecture") != "x86_64":
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
