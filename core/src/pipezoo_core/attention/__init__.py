"""Attention over pages: the seam, and the backends behind it."""

from pipezoo_core.attention.base import Attention, AttentionBackend, AttentionSpec, Rotation
from pipezoo_core.attention.native import NativeAttention
from pipezoo_core.attention.paged import PagedAttention
from pipezoo_core.attention.reference import ReferenceAttention
from pipezoo_core.attention.select import select_backend

__all__ = [
    "Attention",
    "AttentionBackend",
    "AttentionSpec",
    "NativeAttention",
    "PagedAttention",
    "ReferenceAttention",
    "Rotation",
    "select_backend",
]
