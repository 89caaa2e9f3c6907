"""The installed plugins: read from the metadata of distributions, imported only when chosen.

Imports neither torch nor transformers and, until `PluginIndex.load`, no plugin. Knows nothing of model configs:
which plugin is chosen for one is decided in `resolution`.
"""

from __future__ import annotations

import enum
import importlib.metadata
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import Distribution
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipezoo.plugin_loading import load_architectures
from pipezoo.plugin_setting import VARIABLE, PluginSetting
from pipezoo_core.errors import BrokenPluginError, IncompatiblePluginError, PluginNotFoundError
from pipezoo_core.hookspecs import ENTRY_POINT_GROUP

if TYPE_CHECKING:
    from pipezoo_core.architecture import SupportedArchitecture

__all__ = ["PluginIndex", "PluginInfo", "PluginState"]

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


class PluginIndex:
    """Owns what is known about the installed plugins.

    The metadata and the setting `PIPEZOO_PLUGINS` are read once, here; a new index sees what was installed since.

    Args:
        distributions: where to look; by default all that can be imported.

    Raises:
        InvalidSettingError: `PIPEZOO_PLUGINS` cannot be understood.
    """

    def __init__(self, distributions: Iterable[Distribution] | None = None) -> None:
        self.setting = PluginSetting.from_environment()
        found = importlib.metadata.distributions() if distributions is None else distributions
        self._found = sorted(_read(found, self.setting), key=lambda info: (info.name, info.distribution))
        self._loaded: dict[tuple[str, str], tuple[SupportedArchitecture, ...]] = {}
        self._failed: dict[tuple[str, str], tuple[PluginState, str]] = {}

    def plugins(self) -> list[PluginInfo]:
        """Returns every claim of every plugin in its present state, by name and distribution."""
        return [self._now(info) for info in self._found]

    def serving(self, name: str) -> list[PluginInfo]:
        """Returns the plugins, in any state, that claim this model type or architecture name."""
        return [self._now(info) for info in self._found if info.name == name]

    def load(self, plugin: PluginInfo) -> tuple[SupportedArchitecture, ...]:
        """Imports a plugin, once, and returns the architectures it serves. After a failure it may be called again.

        Raises:
            PluginNotFoundError: it is disabled.
            IncompatiblePluginError: it was made for another version of pipezoo-core.
            BrokenPluginError: it raised while it was imported or asked; the cause is chained.
        """
        key = plugin.distribution, plugin.module
        if key not in self._loaded:
            self._refuse(next(info for info in self._found if (info.distribution, info.module) == key))
            try:
                self._loaded[key] = load_architectures(*key)
            except IncompatiblePluginError as error:
                self._failed[key] = PluginState.incompatible, str(error)
                raise
            except BrokenPluginError as error:
                self._failed[key] = PluginState.broken, "".join(traceback.format_exception(error.__cause__))
                raise
        return self._loaded[key]

    def _now(self, info: PluginInfo) -> PluginInfo:
        key = info.distribution, info.module
        if key in self._loaded:
            return replace(info, state=PluginState.loaded, reason=None)
        if key in self._failed:
            state, reason = self._failed[key]
            return replace(info, state=state, reason=reason)
        return info

    @staticmethod
    def _refuse(plugin: PluginInfo) -> None:
        if plugin.state is PluginState.disabled:
            raise PluginNotFoundError(
                f"plugin {plugin.distribution!r} is {plugin.reason}",
                cure=f"Take '-{plugin.distribution}' out of {VARIABLE}",
            )
        if plugin.state is PluginState.incompatible:
            raise IncompatiblePluginError(
                f"plugin {plugin.distribution!r} {plugin.version} {plugin.reason}",
                cure=f"Try: pip install --upgrade {plugin.distribution} pipezoo",
            )
        if plugin.state is PluginState.broken:
            raise BrokenPluginError(
                f"the metadata of plugin {plugin.distribution!r} cannot be read",
                found=plugin.reason,
                cure=f"Try: pip install --force-reinstall {plugin.distribution}",
            )


def _read(distributions: Iterable[Distribution], setting: PluginSetting) -> Iterator[PluginInfo]:
    core_version = importlib.metadata.version(_CORE)
    seen: set[str] = set()
    for distribution in distributions:
        claims = _claims(distribution)
        names = {claim.distribution for claim in claims} - {_UNREADABLE}
        if names & seen:  # the same distribution again is a stale egg-info further down the path
            continue
        seen |= names
        problem = _incompatibility(distribution, core_version) if claims else None
        yield from (_judged(claim, setting, problem) for claim in claims)


def _claims(distribution: Distribution) -> list[PluginInfo]:
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
