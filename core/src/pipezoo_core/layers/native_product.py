"""Linear layers by the kernels of `pipezoo-kernels`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipezoo_core.layers.linear import Product
from pipezoo_core.layers.stored import StoredWeight
from pipezoo_core.native import GATE, Activation, Form, NativeKernels, Packing, packed_size

__all__ = ["NativeProduct"]


class NativeProduct(Product):
    """`x Wᵀ + b` by the kernels of `pipezoo-kernels`, with W packed once into the panels they read.

    Args:
        kernels: compute it.
        weight: [out_features, in_features]. Copied. in_features is even, or a multiple of `GROUP` to be quantized. Or
            the rows of a file, which keep their numbers.
        bias: [out_features], or None.
        bits: 8 or 4 to quantize the weight; None to keep its numbers.
        form: of the result. Gated, the weight is a gate's and, below it, that of what it lets through.
        activation: of the gate.

    Attributes:
        kernels: see above.
        packed: the weight in the order that they read.
        packing: what its numbers are.
        bias: in that order, too.
        shape: of the weight: out_features, in_features.
        form: see above.
        activation: see above.
    """

    def __init__(
        self,
        kernels: NativeKernels,
        weight: Tensor | StoredWeight,
        bias: Tensor | None,
        bits: Literal[8, 4] | None = None,
        form: Form = Form.plain,
        activation: Activation = Activation.silu,
    ) -> None:
        self.kernels = kernels
        self.form = form
        self.activation = activation
        if bias is not None and form is Form.gated:
            bias = bias.unflatten(0, (2, -1, GATE)).transpose(0, 1).flatten()  # in the order of the packed weight
        if isinstance(weight, StoredWeight):
            assert weight.type.packing is not None
            self.packing = weight.type.packing
            self.packed = kernels.pack_stored(weight.type.layout[0], weight.rows, form)
            self._order = None if weight.type.order is None else _columns(weight.type.order)
        else:
            self.packing, self._order = Packing.of_bits(bits), None
            self.packed = kernels.pack(weight.detach() if bits else weight.detach().to(kernels.dtype), bits, form)
        self.bias = None if bias is None else bias.detach().to(kernels.dtype).contiguous()
        self.shape = (weight.shape[0], weight.shape[1])
        kernels.check_packed(self.packed, self.bias, self.shape, self.packing)

    @staticmethod
    def size_of(weight: Tensor, bits: int | None) -> int:
        """Returns the bytes of a weight, which may be on the meta device, when it is packed."""
        return packed_size(weight, Packing.of_bits(bits))

    def __call__(self, x: Tensor) -> Tensor:
        """Maps [..., in_features] to [..., out_features]."""
        return self.kernels.linear(
            x if self._order is None else x.index_select(-1, self._order),
            self.packed,
            self.bias,
            self.shape,
            packing=self.packing,
            form=self.form,
            activation=self.activation,
        )

    def rows(self, indices: Tensor) -> Tensor:
        """Maps int64 [T] to these rows of W."""
        rows = self.kernels.packed_rows(indices, self.packed, self.shape, self.packing)
        return rows if self._order is None else rows.index_select(-1, self._order.argsort())

    @property
    def keeps_order(self) -> bool:
        """Whether the weight's columns are packed in their own order, so that `packed` alone is enough."""
        return self._order is None


def _columns(order: bytes) -> Tensor:
    return torch.frombuffer(bytearray(order), dtype=torch.int32).long()
