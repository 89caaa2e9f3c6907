"""Which versions are installed, and whether they are what pipezoo and its core require."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator

from packaging.requirements import Requirement

from pipezoo.diagnosis.finding import Finding, Status

__all__ = ["version_findings"]

_OURS = ("pipezoo", "pipezoo-core")


def version_findings() -> Iterator[Finding]:
    """Yields Python, the platform, pipezoo and all that it requires."""
    yield Finding("Python", platform.python_version())
    yield Finding("platform", platform.platform())
    for name in _OURS:
        yield Finding(name, importlib.metadata.version(name))
    required: dict[str, list[Requirement]] = {}
    for requirement in (Requirement(text) for name in _OURS for text in importlib.metadata.requires(name) or ()):
        if requirement.name not in _OURS and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            required.setdefault(requirement.name, []).append(requirement)
    for name in sorted(required):
        yield _judged(name, required[name])


def _judged(name: str, requirements: list[Requirement]) -> Finding:
    wanted = ",".join(sorted({str(requirement.specifier) for requirement in requirements}))
    cure = f"Try: pip install '{name}{wanted}'"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, f"not installed, {wanted or 'any version'} is required", Status.broken, cure)
    if all(requirement.specifier.contains(found, prereleases=True) for requirement in requirements):
        return Finding(name, found)
    return Finding(name, f"{found}, and {wanted} is required", Status.broken, cure)
