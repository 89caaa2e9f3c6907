"""Which requests a step works on, and where. Decides on the host, and imports no torch."""

from pipezoo_core.scheduling.adapters import hold_adapter
from pipezoo_core.scheduling.router import get_or_recommend_replica
from pipezoo_core.scheduling.scheduler import Scheduler

__all__ = ["Scheduler", "get_or_recommend_replica", "hold_adapter"]
