"""Kernels for x86 CPUs with AVX-512 and bfloat16 instructions. `pipezoo_core` uses them where they are installed.

The functions take addresses and check nothing: they are for `pipezoo_core`'s backends, which do. Importing this module
on a CPU without those instructions is safe; calling it is not. What each computes is said in the headers in `native/`.
"""

from pipezoo_kernels import _native as native

__all__ = ["native"]
