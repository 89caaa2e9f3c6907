"""Which pages there are, who owns them, and what they hold. Decides on the host, and imports no torch."""

from pipezoo_core.paging.books import GroupBooks, known_prefix
from pipezoo_core.paging.cache_books import CacheBooks
from pipezoo_core.paging.claim import NO_PAGE, NO_SLOT, Claim, Holding, StateHolding
from pipezoo_core.paging.metrics import KVCacheMetrics
from pipezoo_core.paging.observer import PageObserver
from pipezoo_core.paging.page_pool import PagePool
from pipezoo_core.paging.prefix_cache import PrefixCache, root_hash
from pipezoo_core.paging.state_books import StateBooks
from pipezoo_core.paging.upcoming import UpcomingPages
from pipezoo_core.paging.window import first_visible

__all__ = [
    "NO_PAGE",
    "NO_SLOT",
    "CacheBooks",
    "Claim",
    "GroupBooks",
    "Holding",
    "KVCacheMetrics",
    "PageObserver",
    "PagePool",
    "PrefixCache",
    "StateBooks",
    "StateHolding",
    "UpcomingPages",
    "first_visible",
    "known_prefix",
    "root_hash",
]
