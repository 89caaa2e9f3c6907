"""Weights in the order in which the kernels read them, in memory that they share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pipezoo_core.native.calls import CPU, KernelCalls, call, is_plain, mismatch, of_packing, shape_of
from pipezoo_core.native.memory_pool import aligned, aligned_bytes
from pipezoo_core.native.packing import GROUP, Form, Packing, packed_bytes, packed_size, stored_blocks
from pipezoo_core.native.variants import DTYPES, PANEL

__all__ = ["PackedStore", "PackingKernels"]

_PIECE = 2**28  # bytes of memory that weights share


class PackedStore(Protocol):
    """Has weights that were packed before, or keeps those that are packed now: see `weights.load_cache`."""

    def take(self, name: str, size: int) -> Tensor | None:
        """Returns the next weight, uint8 [size]; None where it has none, and the weight is to be packed."""
        ...

    def add(self, name: str, packed: Tensor) -> None:
        """Is given a weight that was packed."""
        ...


class PackingKernels(KernelCalls):
    """The kernels that pack weights.

    Attributes:
        store: of packed weights, while a model is loaded with one; None where all are packed and none is kept.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(device, dtype)
        self.store: PackedStore | None = None
        self._piece, self._used = torch.empty(0, dtype=torch.uint8, device=CPU), 0

    def pack(self, weight: Tensor, bits: int | None = None, form: Form = Form.plain) -> Tensor:
        """Returns a weight [out_features, in_features] in the order that `linear` reads.

        While a step is recorded, nothing is computed here either: the memory alone is there.

        Args:
            weight: in_features must be even, or a multiple of `GROUP` to be quantized. In the model's dtype, or to be
                quantized also in float32. On the meta device where `store` has it packed.
            bits: 8 or 4 to quantize, see `layers.quantized`; None to keep the numbers.
            form: that it will be used in.
        """
        unit = 2 if bits is None else GROUP
        is_known = weight.dtype is self.dtype or (bits is not None and weight.dtype in DTYPES)
        is_gated = form is Form.gated
        rows, columns = shape_of("the packing of a weight", weight, 2)
        is_whole = rows * columns > 0 and not (columns % unit or (is_gated and rows % PANEL))
        if not (is_known and is_whole and self._can_pack(weight)):
            sizes = f"[{f'a multiple of {PANEL}' if is_gated else 'any'}, a multiple of {unit}]"
            raise mismatch("the packing of a weight", weight, f"{self.dtype} {sizes} on the CPU")
        packing = Packing.of_bits(bits)
        kernel = f"{of_packing('pack', packing)}_{DTYPES[weight.dtype]}"
        return self._packed(kernel, weight, (rows, columns), packing, form, packed_size(weight, packing))

    def pack_stored(self, type_name: str, rows: Tensor, form: Form = Form.plain) -> Tensor:
        """Returns a weight whose rows a file has quantized, in the order that `linear` reads, with the same numbers.

        Args:
            type_name: of GGUF's types one that `Packing.of_type` knows.
            rows: uint8 [out_features, bytes], as in the file: whole blocks. On the meta device where `store` has them
                packed.
            form: that it will be used in.
        """
        packing, block, size, row_bytes = stored_blocks(type_name)
        is_gated = form is Form.gated
        is_known = rows.dtype is torch.uint8 and self._can_pack(rows) and rows.dim() == 2
        num_bytes = rows.shape[-1] - row_bytes if is_known else 0
        if num_bytes <= 0 or not rows.shape[0] or num_bytes % size or (is_gated and rows.shape[0] % PANEL):
            columns = f"a multiple of {size}" + (f" and {row_bytes} more" if row_bytes else "")
            sizes = f"[{f'a multiple of {PANEL}' if is_gated else 'any'}, {columns}]"
            raise mismatch(f"the packing of a file's rows of {type_name}", rows, f"torch.uint8 {sizes} on the CPU")
        shape = (rows.shape[0], num_bytes // size * block)
        return self._packed(f"pack_{type_name.lower()}", rows, shape, packing, form, packed_bytes(shape, packing))

    def _can_pack(self, weight: Tensor) -> bool:
        return is_plain(weight) or (weight.is_meta and self.store is not None)

    def _packed(
        self, kernel: str, weight: Tensor, shape: tuple[int, int], packing: Packing, form: Form, size: int
    ) -> Tensor:
        """Returns a weight that the store has, or that a kernel packs now."""
        name = f"{packing.name} {form.name} {shape[0]} x {shape[1]}"
        if self.store is not None and (found := self.store.take(name, size)) is not None:
            return found
        weight, packed = weight.contiguous(), self._allocate(size)
        if self.observer is None:
            call(getattr(self._native, kernel), weight.data_ptr(), packed.data_ptr(), *shape, form)
            if self.store is not None:
                self.store.add(name, packed)
        return packed

    def _allocate(self, size: int) -> Tensor:
        """Returns bytes of a piece of memory that is shared with other weights, large enough for pages of 2 MiB.

        Weights are read from end to end at every step: with pages of 4 KiB that stops at each of them to look up the
        next one.
        """
        start = aligned(self._used)
        if start + size > len(self._piece):
            self._piece, start = torch.from_numpy(aligned_bytes(max(size, _PIECE))), 0
        self._used = start + size
        return self._piece[start : self._used]
