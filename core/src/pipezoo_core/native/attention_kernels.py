"""The kernel of attention over pages; what it computes is said in `attention.native`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pipezoo_core.native.calls import KernelCalls, address_of, mismatch, shape_of

__all__ = ["AttentionKernels", "AttentionSizes"]


class AttentionSizes(NamedTuple):
    """What an attention's heads and pages are, as the description of its steps says, too."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    page_size: int


class AttentionKernels(KernelCalls):
    """The kernel that writes keys and values into their pages, and attends over these."""

    def attend(
        self,
        qkv: tuple[Tensor, Tensor | None, Tensor | None],
        rotation: tuple[Tensor, Tensor] | None,
        pages: tuple[Tensor, Tensor | None],
        descriptions: tuple[int, int],
        sinks: Tensor | None,
        sizes: AttentionSizes,
        num_rows: int,
    ) -> Tensor:
        """Returns what the queries see, and writes keys and values into their pages; see `attention.native`.

        Args:
            qkv: queries, keys and values, [num_rows, heads · numbers] of each. None for keys and values that are in the
                pages already, and for values in keys.
            rotation: cosines and sines [num_rows, rotary_dim], or None.
            pages: the layer's keys and values, [num_pages, num_kv_heads, page_size · numbers]; None for values that are
                the first numbers of the keys.
            descriptions: addresses of the step's description and of the layer's.
            sinks: [num_heads], or None.
            sizes: of the step's description and of the pages.
            num_rows: of the step's description.
        """
        self._check_heads(qkv, pages, sizes, num_rows)
        rotary_dim = 0
        if rotation is not None:
            before = sizes.value_dim if pages[1] is None else 0
            rotary_dim = self._check_rotation(rotation, num_rows, sizes.head_dim - before)
            rotation = (rotation[0].contiguous(), rotation[1].contiguous())
        if sinks is not None:
            self._check("attend's sinks", sinks, sizes.num_heads, contiguous=True)
        q, k, v = (x if x is None or x.stride(-1) == 1 else x.contiguous() for x in qkv)
        out = self._empty((num_rows, sizes.num_heads * sizes.value_dim), self.dtype)
        strided = [number for x in (q, k, v) for number in ((0, 0) if x is None else (x.data_ptr(), x.stride(0)))]
        cos, sin = (0, 0) if rotation is None else (rotation[0].data_ptr(), rotation[1].data_ptr())
        written = (pages[0].data_ptr(), address_of(pages[1]), out.data_ptr())
        self._run("attend", *strided, cos, sin, rotary_dim, *written, *descriptions, address_of(sinks))
        return out

    def _check_heads(
        self,
        qkv: tuple[Tensor, Tensor | None, Tensor | None],
        pages: tuple[Tensor, Tensor | None],
        sizes: AttentionSizes,
        num_rows: int,
    ) -> None:
        """Raises for other queries, keys, values or pages than of these sizes."""
        kv_heads = sizes.num_kv_heads
        widths = (sizes.num_heads * sizes.head_dim, kv_heads * sizes.head_dim, kv_heads * sizes.value_dim)
        for name, x, numbers in zip("qkv", qkv, widths, strict=True):
            if x is not None:
                self._check(f"attend's {name}", x, num_rows, numbers)
        for page, numbers in zip(pages, (sizes.head_dim, sizes.value_dim), strict=True):
            if page is not None:
                shape = (*page.shape[:1], kv_heads, sizes.page_size * numbers)
                self._check("attend's pages", page, *shape, contiguous=True)

    def _check_rotation(self, rotation: tuple[Tensor, Tensor], rows: int, most: int) -> int:
        """Returns how many numbers of a head are rotated, `most` at most. Raises for other cosines or sines."""
        _, rotary_dim = shape_of("attend's cos", rotation[0], 2)
        if rotary_dim % 2 or not 0 < rotary_dim <= most:
            raise mismatch("attend's cos", rotation[0], f"pairs of numbers, {most} at most")
        for name, x in zip(("cos", "sin"), rotation, strict=True):
            self._check(f"attend's {name}", x, rows, rotary_dim)
        return rotary_dim
