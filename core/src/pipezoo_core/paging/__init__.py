"""Which pages there are, who owns them, and what they hold. Decides on the host, and imports no torch."""

from pipezoo_core.paging.claim import NO_PAGE, Claim
from pipezoo_core.paging.metrics import KVCacheMetrics
from pipezoo_core.paging.page_pool import PagePool
from pipezoo_core.paging.prefix_cache import PrefixCache, root_hash
from pipezoo_core.paging.upcoming import UpcomingPages
from pipezoo_core.paging.window import first_visible

__all__ = [
    "NO_PAGE",
    "Claim",
    "KVCacheMetrics",
    "PagePool",
    "PrefixCache",
    "UpcomingPages",
    "first_visible",
    "root_hash",
]
