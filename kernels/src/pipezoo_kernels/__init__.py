"""Kernels for x86 CPUs, which `pipezoo_core` uses where they are installed.

There is a module for CPUs with AVX-512 and its instructions for bfloat16 and bytes, `_avx512`, one for those that lack
the ones for bfloat16, `_avx512_vnni`, and one for CPUs with AVX2, `_avx2`. All have the same functions, and
`interface`, the number that `pipezoo_core` asks for before it uses them. They take addresses and check nothing but
tokens: they are for `pipezoo_core`'s backends, which check the rest. Each module can be imported on any CPU; calling it
is safe only where the instructions are. What each function computes is said in the headers in `native/`.
"""
