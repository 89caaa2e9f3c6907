"""What the metadata of installed distributions says about plugins. Imports none of them.

Knows the setting PIPEZOO_PLUGINS and the version of pipezoo-core, nothing of what happens when a plugin is loaded.
"""

from __future__ import annotations

import enum
import importlib.metadata
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import Distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipezoo.discovery.published import how_to_mend
from pipezoo.discovery.setting import VARIABLE, PluginSetting
from pipezoo_core.hookspecs import ENTRY_POINT_GROUP

__all__ = ["PluginInfo", "PluginState", "read_claims"]

_CORE = "pipezoo-core"
_UNREADABLE = "?"


class PluginState(enum.StrEnum):
    """What is known about a plugin.

    Before anything is imported it may be disabled by the user, shadowed by a pin on another distribution, incompatible
    by its requirements, or broken in its metadata; else it is available.
    """

    available = "available"
    loaded = "loaded"
    disabled = "disabled"
    incompatible = "incompatible"
    broken = "broken"
    shadowed = "shadowed"


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One entry point: a type, and the distribution that claims it.

    Attributes:
        name: the Hugging Face `model_type`, or the architecture name, that is claimed; "?" where unreadable.
        distribution: the normalised name of the distribution, as pip knows it.
        version: the distribution's version.
        module: the module to import.
        state: what was known when this was asked for.
        reason: why it is in this state, if it is more than available; a traceback if it is broken.
    """

    name: str
    distribution: str
    version: str
    module: str
    state: PluginState = PluginState.available
    reason: str | None = None

    @property
    def cure(self) -> str | None:
        """What the user can do where the plugin cannot be used; None where it can."""
        if self.state in (PluginState.broken, PluginState.incompatible):
            return how_to_mend(self.distribution)
        if self.state is PluginState.disabled:
            return f"Take '-{self.distribution}' out of {VARIABLE}."
        if self.state is PluginState.shadowed:
            return f"Pin it instead: {VARIABLE}={self.name}={self.distribution}"
        return None


def read_claims(distributions: Iterable[Distribution], setting: PluginSetting) -> Iterator[PluginInfo]:
    """Yields every claim of every plugin distribution; of a distribution that is met twice only the first."""
    core_version = importlib.metadata.version(_CORE)
    seen: set[str] = set()
    for distribution in distributions:
        claims = _claims_of(distribution)
        names = {claim.distribution for claim in claims} - {_UNREADABLE}
        if names & seen:  # the same distribution again is a stale egg-info further down the path
            continue
        seen |= names
        problem = _incompatibility(distribution, core_version) if claims else None
        yield from (_judged(claim, setting, problem) for claim in claims)


def _claims_of(distribution: Distribution) -> list[PluginInfo]:
    name = version = _UNREADABLE
    try:
        # Most distributions are no plugins, and parsing the metadata of all would take longer than all the rest.
        if f"[{ENTRY_POINT_GROUP}]" not in (distribution.read_text("entry_points.txt") or ""):
            return []
        name = canonicalize_name(distribution.name)
        version = distribution.version
        modules = {entry.name: entry.module for entry in distribution.entry_points.select(group=ENTRY_POINT_GROUP)}
        return [PluginInfo(claim, name, version, module) for claim, module in modules.items()]
    except Exception:  # whatever is wrong with one distribution must not hide the others
        return [PluginInfo(_UNREADABLE, name, version, _UNREADABLE, PluginState.broken, traceback.format_exc())]


def _judged(claim: PluginInfo, setting: PluginSetting, problem: str | None) -> PluginInfo:
    pin = setting.pins.get(claim.name, claim.distribution)
    if claim.distribution in setting.disabled:
        return replace(claim, state=PluginState.disabled, reason=f"disabled by {VARIABLE}")
    if claim.state is PluginState.broken:
        return claim
    if problem is not None:
        return replace(claim, state=PluginState.incompatible, reason=problem)
    if pin != claim.distribution:
        return replace(claim, state=PluginState.shadowed, reason=f"{VARIABLE} pins {claim.name!r} to {pin!r}")
    return claim


def _incompatibility(distribution: Distribution, core_version: str) -> str | None:
    try:
        requirements = [Requirement(text) for text in distribution.requires or ()]
    except Exception as error:  # the metadata may be anything
        return f"states its requirements in a way that cannot be read: {error}"
    for requirement in requirements:
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        fits = requirement.specifier.contains(core_version, prereleases=True)
        if canonicalize_name(requirement.name) == _CORE and applies and not fits:
            return f"needs {requirement}, but {_CORE} {core_version} is installed"
    return None
