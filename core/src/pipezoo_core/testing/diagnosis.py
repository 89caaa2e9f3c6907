"""Where a plugin's model leaves the reference, and why."""

from __future__ import annotations

from pipezoo_core.testing.failures import ConformanceError
from pipezoo_core.testing.subject import Subject

__all__ = ["diagnose"]


def diagnose(subject: Subject, difference: float) -> ConformanceError:
    """Returns the error that says so."""
    return ConformanceError(f"config {subject.name!r}: log probabilities are not the reference's", found=difference)
