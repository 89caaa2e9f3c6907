"""Attention over pages: the seam, and the backends behind it."""

from pipezoo_core.attention.backends import AttentionBackends, kv_groups
from pipezoo_core.attention.base import AttentionBackend, AttentionSpec, Rotation
from pipezoo_core.attention.module import Attention
from pipezoo_core.attention.native import NativeAttention
from pipezoo_core.attention.paged import PagedAttention
from pipezoo_core.attention.reference import ReferenceAttention

__all__ = [
    "Attention",
    "AttentionBackend",
    "AttentionBackends",
    "AttentionSpec",
    "NativeAttention",
    "PagedAttention",
    "ReferenceAttention",
    "Rotation",
    "kv_groups",
]
