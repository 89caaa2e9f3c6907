"""Builds an extension module for each kind of CPU, from the same sources; everything else is in pyproject.toml."""

import copy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = "native"
ROOT = Path(__file__).parent

INSTRUCTIONS = {
    "avx512": ["-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
}


class BuildVariants(build_ext):
    """Builds extension modules of the same sources side by side: each has a folder of its own for its object files."""

    def build_extension(self, ext):
        """Builds one of them."""
        variant = copy.copy(self)
        variant.build_temp = str(Path(self.build_temp) / ext.name)
        super(BuildVariants, variant).build_extension(ext)


setup(
    cmdclass={"build_ext": BuildVariants},
    options={"build_ext": {"parallel": len(INSTRUCTIONS)}},
    ext_modules=[
        Extension(
            f"pipezoo_kernels._{name}",
            sources=[str(source.relative_to(ROOT)) for source in sorted((ROOT / NATIVE).glob("*.cpp"))],
            depends=[str(header.relative_to(ROOT)) for header in sorted((ROOT / NATIVE).glob("*.h"))],
            language="c++",
            extra_compile_args=[
                "-O3",
                "-g0",
                "-std=c++20",
                *instructions,
                "-fopenmp",
                "-ffp-contract=off",  # quantizing rounds as its oracle does
                "-fvisibility=hidden",
                "-Wall",
                "-Wno-ignored-attributes",
                "-Wno-maybe-uninitialized",
                "-Wno-uninitialized",
            ],
            extra_link_args=["-fopenmp", "-Wl,-s"],  # no symbols but those that Python looks for
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
        )
        for name, instructions in INSTRUCTIONS.items()
    ],
)
