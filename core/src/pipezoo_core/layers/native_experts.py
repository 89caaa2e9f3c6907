"""All experts of a mixture in one kernel, which a step that is replayed can have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipezoo_core.layers.native_product import NativeProduct
from pipezoo_core.native import Activation, Form, address_of, mismatch

__all__ = ["NativeExperts"]


class NativeExperts:
    """What a mixture computes, with the weights where its experts' own products have packed them.

    Args:
        gate_ups: of each expert, gated, or where it has no gate the first layer's; packed alike.
        downs: of each expert; packed alike.
        activation: of the gate, or of the first layer.
        first: the number of the first one of these; others are left to other ranks.
        top_k: experts per token.

    Raises:
        TensorMismatchError: a product is of another size than the first one, of another packing, or has another gate.
    """

    def __init__(
        self,
        gate_ups: Sequence[NativeProduct],
        downs: Sequence[NativeProduct],
        *,
        activation: Activation,
        first: int,
        top_k: int,
    ) -> None:
        self._products = (*gate_ups, *downs)  # own the memory
        gate_up, down = gate_ups[0], downs[0]
        hidden, inner = down.shape
        is_gated = gate_up.form is Form.gated
        for products, shape in ((gate_ups, ((1 + is_gated) * inner, hidden)), (downs, (hidden, inner))):
            for product in products:
                _check_alike(product, products[0], shape)
        if is_gated and any(product.activation is not activation for product in gate_ups):
            raise mismatch("experts", gate_up.packed, f"gates of {activation.name}")
        self._sizes = (hidden, inner, top_k)
        self._packed = (len(downs), gate_up.packed.nbytes + down.packed.nbytes)
        self._kernels = down.kernels
        self._addresses = np.array([product.packed.data_ptr() for product in self._products], dtype=np.int64)
        self._biases = [_stacked(gate_ups), _stacked(downs)]
        address = self._addresses.ctypes.data
        self._description = np.array(
            [
                address,
                address + len(gate_ups) * self._addresses.itemsize,
                *map(address_of, self._biases),
                hidden,
                inner,
                first,
                len(downs),
                top_k,
                activation,
                gate_up.packing,
                down.packing,
                is_gated,
            ],
            dtype=np.int64,
        )

    def __call__(self, x_TH: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Maps [T, H] to [T, H], see `Experts.forward`."""
        description = self._description.ctypes.data
        return self._kernels.experts(x_TH, indices_TK, weights_TK, description, self._sizes, self._packed)


def _check_alike(product: NativeProduct, first: NativeProduct, shape: tuple[int, int]) -> None:
    """Raises for what the kernel would read as if it were packed as the first one is."""
    is_alike = (product.packing, product.form) == (first.packing, first.form)
    if product.shape != shape or not is_alike or (product.bias is None) is not (first.bias is None):
        raise mismatch("experts", product.packed, f"products of {list(shape)}, packed alike, all with biases or none")


def _stacked(products: Sequence[NativeProduct]) -> Tensor | None:
    biases = [product.bias for product in products if product.bias is not None]
    return torch.stack(biases) if biases else None
