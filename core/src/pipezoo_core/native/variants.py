"""Which build of `pipezoo-kernels` this CPU runs, each for one set of instructions, and what stands in its way."""

from __future__ import annotations

import importlib

import torch

__all__ = ["DTYPES", "GATE", "INSTRUCTIONS", "INTERFACE", "MODULE", "PANEL", "VARIANT", "obstacle_to"]

INTERFACE = 12
"""Of the kernels that this package was written for: `kInterface` in their module.cpp."""

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""What the kernels compute, with the ending of their names."""

_AVX2 = ("avx2", "fma3", "f16c")
_V4 = (*_AVX2, "bmi", "bmi2", "lzcnt", "avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl")  # x86-64-v4
INSTRUCTIONS = {
    "avx512": (*_V4, "avx512_bf16", "avx512_vnni"),
    "avx512_vnni": (*_V4, "avx512_vnni"),
    "avx2": _AVX2,
}
"""What each build takes, the best one first."""

_LANES = {"avx512": 16, "avx512_vnni": 16, "avx2": 8}  # numbers of a vector


def _missing(variant: str) -> list[str]:
    capabilities = torch.cpu.get_capabilities()
    return [name for name in INSTRUCTIONS[variant] if not capabilities.get(name)]


VARIANT = next((variant for variant in INSTRUCTIONS if not _missing(variant)), "avx2")
"""The set of instructions."""

MODULE = f"pipezoo_kernels._{VARIANT}"
"""The module that has the kernels."""

GATE = _LANES[VARIANT]
"""Columns of a gate, and then of what it lets through, in a gated weight."""

PANEL = 2 * _LANES[VARIANT]
"""Columns that a tile of a product computes; a packed weight is divided into as many."""


def obstacle_to(device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns what stands in the way of using the kernels; None if they can be used."""
    if device.type != "cpu":
        return f"the kernels are for CPUs, not for {device}"
    if dtype not in DTYPES:
        return f"the kernels compute float32 and bfloat16, not {dtype}"
    if missing := _missing(VARIANT):
        return f"this CPU lacks {', '.join(missing)}"
    try:
        module = importlib.import_module(MODULE)
    except ImportError as error:
        if error.name == MODULE:
            return (
                f"the installed pipezoo-kernels has no {VARIANT} kernels, which this CPU takes; "
                "pip install 'pipezoo-core[kernels]' installs the right one"
            )
        return f"pipezoo-kernels is not installed ({error})"
    found = getattr(module, "interface", None)
    if found != INTERFACE:
        return (
            f"the installed pipezoo-kernels is of another version (interface {found}, not {INTERFACE}); "
            "pip install 'pipezoo-core[kernels]' installs the right one"
        )
    return None
