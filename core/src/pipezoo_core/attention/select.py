"""Chooses the attention backend, once, at load."""

from __future__ import annotations

import torch

from pipezoo_core.attention.base import AttentionBackend, AttentionSpec
from pipezoo_core.attention.native import NativeAttention
from pipezoo_core.attention.paged import PagedAttention
from pipezoo_core.attention.reference import ReferenceAttention
from pipezoo_core.config import AttentionName

__all__ = ["select_backend"]


def select_backend(
    name: AttentionName, spec: AttentionSpec, device: torch.device, dtype: torch.dtype, page_size: int
) -> AttentionBackend:
    """Returns the backend with this name; for `auto` the fastest one.

    Raises:
        UnsupportedAttentionError: the backend cannot do what the spec asks for.
    """
    if name is AttentionName.reference:
        return ReferenceAttention(spec)
    if name is AttentionName.auto and NativeAttention.why_not(spec, device, dtype, page_size):
        name = AttentionName.paged
    if name is not AttentionName.paged:
        return NativeAttention(spec, device, dtype, page_size)
    return PagedAttention(spec)
