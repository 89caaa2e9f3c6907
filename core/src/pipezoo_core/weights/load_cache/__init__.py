"""Packed weights, kept in files from one start of a model to the next. See docs/decisions/load-cache.md."""

from pipezoo_core.weights.load_cache.cache import CacheEntry, LoadCache
from pipezoo_core.weights.load_cache.content import FileContent, file_content
from pipezoo_core.weights.load_cache.packed_file import PackedFile, PackedFileWriter, StaleEntryError

__all__ = [
    "CacheEntry",
    "FileContent",
    "LoadCache",
    "PackedFile",
    "PackedFileWriter",
    "StaleEntryError",
    "file_content",
]
