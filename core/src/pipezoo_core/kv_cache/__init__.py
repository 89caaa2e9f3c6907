"""The paged KV cache: which request has which pages, and the tensors behind them."""

from pipezoo_core.kv_cache.inputs import KVCacheInputs, RaggedBatch, StepPlanner, as_tensors
from pipezoo_core.kv_cache.manager import PagedKVCacheManager
from pipezoo_core.kv_cache.params import KVCacheParams, KVGroup
from pipezoo_core.kv_cache.storage import KVCacheStorage

__all__ = [
    "KVCacheInputs",
    "KVCacheParams",
    "KVCacheStorage",
    "KVGroup",
    "PagedKVCacheManager",
    "RaggedBatch",
    "StepPlanner",
    "as_tensors",
]
