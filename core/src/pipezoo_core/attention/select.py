"""Chooses the attention backend, once, at load."""

from __future__ import annotations

from pipezoo_core.attention.base import AttentionBackend, AttentionSpec
from pipezoo_core.attention.native import NativeAttention
from pipezoo_core.attention.paged import PagedAttention
from pipezoo_core.attention.reference import ReferenceAttention
from pipezoo_core.config import AttentionName
from pipezoo_core.native import NativeKernels

__all__ = ["select_backend"]


def select_backend(
    name: AttentionName, spec: AttentionSpec, kernels: NativeKernels, page_size: int
) -> AttentionBackend:
    """Returns the backend with this name; for `auto` the fastest one.

    Raises:
        UnsupportedAttentionError: the backend cannot do what the spec asks for.
    """
    if name is AttentionName.reference:
        return ReferenceAttention(spec)
    if name is AttentionName.auto and NativeAttention.why_not(spec, kernels, page_size):
        name = AttentionName.paged
    if name is not AttentionName.paged:
        return NativeAttention(spec, kernels, page_size)
    return PagedAttention(spec)
