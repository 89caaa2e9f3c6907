"""The paged KV cache: pages, who owns them, what they hold, and the tensors behind them."""

from pipezoo_core.kv_cache.claim import NO_PAGE
from pipezoo_core.kv_cache.inputs import KVCacheInputs, RaggedBatch, StepPlanner, as_tensors
from pipezoo_core.kv_cache.manager import PagedKVCacheManager
from pipezoo_core.kv_cache.metrics import KVCacheMetrics
from pipezoo_core.kv_cache.page_pool import PagePool
from pipezoo_core.kv_cache.params import KVCacheParams
from pipezoo_core.kv_cache.prefix_cache import PrefixCache
from pipezoo_core.kv_cache.storage import KVCacheStorage

__all__ = [
    "NO_PAGE",
    "KVCacheInputs",
    "KVCacheMetrics",
    "KVCacheParams",
    "KVCacheStorage",
    "PagePool",
    "PagedKVCacheManager",
    "PrefixCache",
    "RaggedBatch",
    "StepPlanner",
    "as_tensors",
]
