"""Layers that keep a state of fixed size per request, and what they compute. Knows no requests and no pages."""

from pipezoo_core.recurrence.base import NO_SLOT, StateSpec, StateStep
from pipezoo_core.recurrence.convolution import short_convolution

__all__ = ["NO_SLOT", "StateSpec", "StateStep", "short_convolution"]
