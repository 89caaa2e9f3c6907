"""The installed plugins: read from the metadata of distributions, imported only when chosen.

Imports neither torch nor transformers and, until `PluginIndex.load`, no plugin. Knows nothing of model configs:
which plugin is chosen for one is decided in `resolution`.
"""

from __future__ import annotations

import importlib.metadata
import logging
import traceback
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import Distribution
from typing import TYPE_CHECKING

from pipezoo.discovery.loading import load_architectures
from pipezoo.discovery.metadata import PluginInfo, PluginState, read_claims
from pipezoo.discovery.published import how_to_mend
from pipezoo.discovery.setting import VARIABLE, PluginSetting
from pipezoo.discovery.unmatched import unmatched_items
from pipezoo_core.errors import BrokenPluginError, IncompatiblePluginError, PluginNotFoundError

if TYPE_CHECKING:
    from pipezoo_core.architecture import SupportedArchitecture

__all__ = ["PluginIndex", "PluginInfo", "PluginState"]

_LOGGER = logging.getLogger("pipezoo")


class PluginIndex:
    """Owns what is known about the installed plugins.

    The metadata and the setting `PIPEZOO_PLUGINS` are read once, when first needed. Then, from any method, a setting
    that cannot be understood is an `InvalidSettingError`. Items that match nothing are told to the logger `pipezoo`.

    Args:
        distributions: where to look; by default all that can be imported.
    """

    def __init__(self, distributions: Iterable[Distribution] | None = None) -> None:
        self._distributions = None if distributions is None else tuple(distributions)
        self._loaded: dict[tuple[str, str], tuple[SupportedArchitecture, ...]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Forgets what was read and what failed, so that it is read anew; what was imported stays so."""
        self._setting: PluginSetting | None = None
        self._found: list[PluginInfo] | None = None
        self._failed: dict[tuple[str, str], tuple[PluginState, str]] = {}

    @property
    def setting(self) -> PluginSetting:
        """What the user wishes about plugins."""
        if self._setting is None:
            self._setting = PluginSetting.from_environment()
        return self._setting

    def plugins(self) -> list[PluginInfo]:
        """Returns every claim of every plugin in its present state, by name and distribution."""
        return [self._now(info) for info in self._read()]

    def unmatched(self) -> list[str]:
        """Returns a sentence for each item of the setting that matches no plugin."""
        return unmatched_items(self.setting, self._read())

    def serving(self, name: str) -> list[PluginInfo]:
        """Returns the plugins, in any state, that claim this model type or architecture name."""
        return [self._now(info) for info in self._read() if info.name == name]

    def load(self, plugin: PluginInfo) -> tuple[SupportedArchitecture, ...]:
        """Imports a plugin, once, and returns the architectures it serves. After a failure it may be called again.

        Raises:
            PluginNotFoundError: it is disabled.
            IncompatiblePluginError: it was made for another version of pipezoo-core.
            BrokenPluginError: it raised while it was imported or asked; the cause is chained.
        """
        key = plugin.distribution, plugin.module
        if key not in self._loaded:
            _refuse(next(info for info in self._read() if (info.distribution, info.module) == key))
            try:
                self._loaded[key] = load_architectures(*key)
            except IncompatiblePluginError as error:
                self._failed[key] = PluginState.incompatible, str(error)
                raise
            except BrokenPluginError as error:
                self._failed[key] = PluginState.broken, "".join(traceback.format_exception(error.__cause__))
                raise
        return self._loaded[key]

    def _read(self) -> list[PluginInfo]:
        if self._found is None:
            installed = importlib.metadata.distributions() if self._distributions is None else self._distributions
            self._found = sorted(read_claims(installed, self.setting), key=lambda info: (info.name, info.distribution))
            for sentence in unmatched_items(self.setting, self._found):
                _LOGGER.warning(sentence)
        return self._found

    def _now(self, info: PluginInfo) -> PluginInfo:
        key = info.distribution, info.module
        if key in self._loaded:
            return replace(info, state=PluginState.loaded, reason=None)
        if key in self._failed:
            state, reason = self._failed[key]
            return replace(info, state=state, reason=reason)
        return info


def _refuse(plugin: PluginInfo) -> None:
    if plugin.state is PluginState.disabled:
        raise PluginNotFoundError(
            f"plugin {plugin.distribution!r} is {plugin.reason}",
            cure=f"Take '-{plugin.distribution}' out of {VARIABLE}",
        )
    if plugin.state is PluginState.incompatible:
        raise IncompatiblePluginError(
            f"plugin {plugin.distribution!r} {plugin.version} {plugin.reason}",
            cure=how_to_mend(plugin.distribution),
        )
    if plugin.state is PluginState.broken:
        raise BrokenPluginError(
            f"the metadata of plugin {plugin.distribution!r} cannot be read",
            found=plugin.reason,
            cure=how_to_mend(plugin.distribution),
        )
