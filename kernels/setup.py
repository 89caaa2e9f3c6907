"""Builds the extension module; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = "native"
ROOT = Path(__file__).parent

setup(
    ext_modules=[
        Extension(
            "pipezoo_kernels._native",
            sources=[f"{NATIVE}/{name}.cpp" for name in ("attention", "layers", "linear", "module", "quantized")],
            depends=[str(header.relative_to(ROOT)) for header in sorted((ROOT / NATIVE).glob("*.h"))],
            language="c++",
            extra_compile_args=[
                "-O3",
                "-std=c++17",
                "-march=x86-64-v4",
                "-mavx512bf16",
                "-mavx512vnni",
                "-fopenmp",
                "-ffp-contract=off",  # quantizing rounds as its oracle does
                "-fvisibility=hidden",
                "-Wall",
                "-Wno-ignored-attributes",
                "-Wno-maybe-uninitialized",
                "-Wno-uninitialized",
            ],
            extra_link_args=["-fopenmp"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
        )
    ],
)
