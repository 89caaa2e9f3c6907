"""Linear layers by the kernels of `pipezoo-kernels`."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from pipezoo_core.layers.linear import Product
from pipezoo_core.native import GATE, Activation, Form, NativeKernels, packed_size

__all__ = ["NativeProduct"]


class NativeProduct(Product):
    """`x Wᵀ + b` by the kernels of `pipezoo-kernels`, with W packed once into the panels they read.

    Args:
        kernels: compute it.
        weight: [out_features, in_features]. Copied. in_features is even, or a multiple of `GROUP` to be quantized.
        bias: [out_features], or None.
        bits: 8 or 4 to quantize the weight; None to keep its numbers.
        form: of the result. Gated, the weight is a gate's and, below it, that of what it lets through.
        activation: of the gate.

    Attributes:
        kernels: see above.
        packed: the weight in the order that they read.
        bias: in that order, too.
        shape: of the weight: out_features, in_features.
        bits: see above.
        activation: see above.
    """

    size_of = staticmethod(packed_size)

    def __init__(
        self,
        kernels: NativeKernels,
        weight: Tensor,
        bias: Tensor | None,
        bits: Literal[8, 4] | None = None,
        form: Form = Form.plain,
        activation: Activation = Activation.silu,
    ) -> None:
        self.kernels = kernels
        self.bits = bits
        self._form = form
        self.activation = activation
        if bias is not None and form is Form.gated:
            bias = bias.unflatten(0, (2, -1, GATE)).transpose(0, 1).flatten()  # in the order of the packed weight
        self.packed = kernels.pack(weight.detach() if bits else weight.detach().to(kernels.dtype), bits, form)
        self.bias = None if bias is None else bias.detach().to(kernels.dtype)
        self.shape = (weight.shape[0], weight.shape[1])

    def __call__(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        return self.kernels.linear(
            x,
            self.packed,
            self.bias,
            self.shape,
            bits=self.bits,
            form=self._form,
            activation=self.activation,
        )

    def rows(self, indices: Tensor) -> Tensor:
        """Maps int64 [T] to these rows of W."""
        return self.kernels.packed_rows(indices, self.packed, self.shape, self.bits)
