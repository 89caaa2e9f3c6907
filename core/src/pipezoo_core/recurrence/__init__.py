"""Layers that keep a state of fixed size per request, and what they compute. Knows no requests and no pages."""

from pipezoo_core.recurrence.base import NO_SLOT, StateSpec, StateStep
from pipezoo_core.recurrence.convolution import ShortConvolution, short_convolution
from pipezoo_core.recurrence.delta_rule import GatedDeltaRule, gated_delta_rule
from pipezoo_core.recurrence.gated_norm import GatedRMSNorm, RMSNormOfGated
from pipezoo_core.recurrence.scan import SelectiveScan, selective_scan

__all__ = [
    "NO_SLOT",
    "GatedDeltaRule",
    "GatedRMSNorm",
    "RMSNormOfGated",
    "SelectiveScan",
    "ShortConvolution",
    "StateSpec",
    "StateStep",
    "gated_delta_rule",
    "selective_scan",
    "short_convolution",
]
