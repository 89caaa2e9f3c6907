"""The forms in which the kernels read a weight, and how large they are."""

from __future__ import annotations

import enum

from torch import Tensor

from pipezoo_core.native.variants import PANEL

__all__ = ["GROUP", "Form", "packed_size"]

GROUP = 32
"""Numbers of a quantized weight that share a scale."""

_GROUP_BYTES, _ROW_BYTES = {8: GROUP + 2, 4: GROUP // 2 + 2}, {8: 0, 4: 8}  # of a quantized weight


class Form(enum.IntEnum):
    """What a linear layer's kernel writes.

    Attributes:
        plain: the product.
        gated: `activation(x Gᵀ) · (x Uᵀ)`, where W is G and, below it, U. Packed, and in the bias, `GATE` of one and
            of the other follow by turns.
        wide: the product in float32, whatever the dtype of the model.
    """

    plain = 0
    gated = 1
    wide = 2


def packed_size(weight: Tensor, bits: int | None) -> int:
    """Returns the bytes of a weight, which may be on the meta device, when it is packed."""
    out_features, in_features = weight.shape
    num_rows = -(-out_features // PANEL) * PANEL
    if bits is None:
        return num_rows * in_features * weight.dtype.itemsize
    return num_rows * (_ROW_BYTES[bits] + in_features // GROUP * _GROUP_BYTES[bits])
