"""Builds an extension module for each kind of CPU, from the same sources; everything else is in pyproject.toml."""

import copy
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

NATIVE = "native"
ROOT = Path(__file__).parent

INSTRUCTIONS = {
    "avx512": ["-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni"],
    "avx512_vnni": ["-march=x86-64-v4", "-mavx512vnni"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
}
SLOWEST = "products_groups.cpp"  # to compile; it begins first


class BuildVariants(build_ext):
    """Compiles the sources of all extension modules side by side, as many at a time as there are cores."""

    def build_extensions(self):
        """Compiles what is older than its source or a header, and then links."""
        jobs = [(ext, source) for ext in self.extensions for source in ext.sources]
        jobs.sort(key=lambda job: Path(job[1]).name != SLOWEST)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with ThreadPoolExecutor(self.parallel or cores) as pool:
            list(pool.map(self.compile_source, jobs))
        super().build_extensions()

    def compile_source(self, job):
        """Compiles one source of an extension module, into a folder of the module's own."""
        ext, source = job
        if self.force or newer_group([source, *ext.depends], self.object_of(ext, source)):
            self.compiler.compile(
                [source],
                self.folder_of(ext),
                ext.define_macros,
                ext.include_dirs,
                self.debug,
                extra_postargs=ext.extra_compile_args,
            )

    def build_extension(self, ext):
        """Links one of them."""
        linked = copy.copy(ext)
        linked.sources, linked.depends = [], [*ext.sources, *ext.depends]
        linked.extra_objects = [self.object_of(ext, source) for source in ext.sources]
        super().build_extension(linked)

    def folder_of(self, ext):
        """Where the objects of an extension module lie."""
        return str(Path(self.build_temp) / ext.name)

    def object_of(self, ext, source):
        """What a source is compiled to."""
        return self.compiler.object_filenames([source], output_dir=self.folder_of(ext))[0]


setup(
    cmdclass={"build_ext": BuildVariants},
    ext_modules=[
        Extension(
            f"pipezoo_kernels._{name}",
            sources=[str(source.relative_to(ROOT)) for source in sorted((ROOT / NATIVE).glob("*.cpp"))],
            depends=["setup.py", *(str(header.relative_to(ROOT)) for header in sorted((ROOT / NATIVE).glob("*.h")))],
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
            define_macros=[("Py_LIMITED_API", "0x030B0000"), ("PIPEZOO_INIT", f"PyInit__{name}")],
            py_limited_api=True,
        )
        for name, instructions in INSTRUCTIONS.items()
    ],
)
