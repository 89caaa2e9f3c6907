"""The optional kernels of `pipezoo-kernels`: whether they can be used here, and how to get one.

The backends that call them live beside the others, in `attention` and `layers`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["native_kernel", "why_not_native"]

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_INSTRUCTIONS = ("avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl", "avx512_bf16", "avx512_vnni")


def why_not_native(device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns what stands in the way of the kernels; None if they can be used."""
    if device.type != "cpu":
        return f"the kernels are for CPUs, not for {device}"
    if dtype not in _DTYPES:
        return f"the kernels compute float32 and bfloat16, not {dtype}"
    capabilities = torch.cpu.get_capabilities()
    missing = [name for name in _INSTRUCTIONS if not capabilities.get(name)]
    if missing:
        return f"this CPU lacks {', '.join(missing)}"
    try:
        importlib.import_module("pipezoo_kernels")
    except ImportError as error:
        return f"pipezoo-kernels is not installed ({error})"
    return None


def native_kernel(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """Returns a kernel for numbers of this type. Only where `why_not_native` has nothing to say."""
    kernel: Callable[..., Any] = getattr(importlib.import_module("pipezoo_kernels").native, f"{name}_{_DTYPES[dtype]}")
    return kernel
