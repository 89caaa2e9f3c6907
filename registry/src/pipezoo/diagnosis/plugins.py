"""Every installed plugin, imported, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipezoo.diagnosis.finding import Finding, Status
from pipezoo.discovery.index import PluginIndex, PluginInfo, PluginState
from pipezoo.discovery.published import ANY
from pipezoo.discovery.setting import VARIABLE
from pipezoo_core.errors import PluginError

__all__ = ["loaded_plugins", "plugin_findings"]

_BAD = (PluginState.broken, PluginState.incompatible)
_USABLE = (PluginState.available, PluginState.loaded)


def loaded_plugins(index: PluginIndex) -> list[PluginInfo]:
    """Imports every plugin that may be, and returns all in the state that they are in then.

    Raises:
        InvalidSettingError: PIPEZOO_PLUGINS cannot be understood.
    """
    usable = [info for info in index.plugins() if info.state is PluginState.available]
    for info in {(info.distribution, info.module): info for info in usable}.values():
        try:
            index.load(info)
        except PluginError:
            continue  # its state says so from now on
    return index.plugins()


def plugin_findings(index: PluginIndex, plugins: Sequence[PluginInfo]) -> Iterator[Finding]:
    """Yields what a user has to know of the plugins: those that cannot be used, conflicts, items that match nothing."""
    if not plugins:
        yield Finding("plugins", "none is installed", Status.note, "Try: pip install pipezoo-llama")
    by_distribution = {info.distribution: info for info in plugins if info.state in _BAD}
    for distribution, info in by_distribution.items():
        reason = (info.reason or "").strip().splitlines()
        last = reason[-1] if reason else ""
        yield Finding(distribution, f"{info.state}: {last}", Status.broken, info.cure)
    for name in dict.fromkeys(info.name for info in plugins):
        serving = [info.distribution for info in plugins if info.name == name and info.state in _USABLE]
        if len(serving) > 1 and name != ANY:
            cure = f"Choose one: {VARIABLE}={name}={serving[0]}"
            yield Finding(name, f"served by {' and '.join(serving)}", Status.broken, cure)
    for sentence in index.unmatched():
        yield Finding(VARIABLE, sentence.removeprefix(f"{VARIABLE}: "), Status.note, "Take the item out, or mend it.")
