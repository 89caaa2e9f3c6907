"""Packed weights, kept in files from one start of a model to the next. See docs/decisions/load-cache.md."""

from pipezoo_core.weights.load_cache.cache import CacheEntry, LoadCache
from pipezoo_core.weights.load_cache.content import content_hashes
from pipezoo_core.weights.load_cache.packed_file import PackedFile, PackedFileWriter, StaleEntryError

__all__ = ["CacheEntry", "LoadCache", "PackedFile", "PackedFileWriter", "StaleEntryError", "content_hashes"]
