"""Which installed plugin a config's names lead to, before any plugin is imported.

First what the caller asks for (`plugin=`), then the user's pin, then the names in the order they are given, and last a
plugin that claims `*`: it takes what no other one serves. Knows nothing of config.json beyond those names.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from packaging.utils import canonicalize_name

from pipezoo.discovery.index import PluginIndex, PluginInfo, PluginState
from pipezoo.discovery.published import ANY, PUBLISHED, how_to_install
from pipezoo.discovery.setting import VARIABLE
from pipezoo_core.errors import PluginConflictError, PluginNotFoundError, shown

__all__ = ["AskedName", "PluginChoice", "choose_plugin", "not_found"]

_MAX_NAMED = 4  # of the names that come nearest to the one that is asked for
_MAX_COMPARED = 100  # characters of that: to compare long ones takes seconds


class AskedName(NamedTuple):
    """A name that a config asks for, and the key where it stands, e.g. `text_config.model_type`."""

    where: str
    name: str

    def __str__(self) -> str:
        return f"{self.where} {self.name!r}"


class PluginChoice(NamedTuple):
    """A plugin, the name it was chosen for, and how it came to be chosen."""

    plugin: PluginInfo
    asked: AskedName
    reason: str


def choose_plugin(index: PluginIndex, asked: Sequence[AskedName], plugin: str | None) -> PluginChoice:
    """Chooses among the installed plugins; at least one name is asked for.

    Raises:
        PluginNotFoundError: none serves the names, or the one that is asked for or pinned is not there.
        PluginConflictError: several serve the same name and none is pinned.
    """
    if plugin is not None:
        return _explicit(index, asked, plugin)
    for name in asked:
        if name.name in index.setting.pins:
            return _pinned(index, name, index.setting.pins[name.name])
    for name in asked:
        usable = [info for info in index.serving(name.name) if info.state is not PluginState.disabled]
        if usable:
            return _claimed(name, usable)
    for info in index.serving(ANY):
        if info.state is not PluginState.disabled:
            return PluginChoice(info, asked[0], f"no other plugin serves {asked[0]}")
    raise not_found(index, asked)


def _explicit(index: PluginIndex, asked: Sequence[AskedName], plugin: str) -> PluginChoice:
    name = canonicalize_name(plugin) if isinstance(plugin, str) else ""
    own = [info for info in index.plugins() if info.distribution == name]
    if not own:
        raise PluginNotFoundError(
            f"no plugin is called {shown(plugin)}",
            allowed=sorted({info.distribution for info in index.plugins()}),
            cure=how_to_install(name),
        )
    reason = f"asked for by plugin={plugin!r}"
    for wanted in asked:
        for info in own:
            if info.name == wanted.name:
                return PluginChoice(info, wanted, reason)
    # It claims none of the names, but may know the architecture all the same: loading it will tell.
    return PluginChoice(own[0], asked[0], reason)


def _pinned(index: PluginIndex, name: AskedName, distribution: str) -> PluginChoice:
    for info in index.serving(name.name):
        if info.distribution == distribution:
            return PluginChoice(info, name, f"{VARIABLE} pins {name.name!r} to it")
    raise PluginNotFoundError(
        f"{VARIABLE} pins {name.name!r} to {distribution!r}, which is not installed or does not serve it",
        found=[info.distribution for info in index.serving(name.name)],
        cure=f"Change {VARIABLE}, or install it. {how_to_install(distribution)}",
    )


def _claimed(name: AskedName, usable: Sequence[PluginInfo]) -> PluginChoice:
    # Where all are incompatible, loading the first one says so.
    fitting = [info for info in usable if info.state is not PluginState.incompatible] or usable[:1]
    if len(fitting) > 1:
        raise PluginConflictError(
            f"several plugins serve {name}",
            found=[info.distribution for info in fitting],
            cure=f'Choose one: registry.load(..., plugin="{fitting[0].distribution}"), '
            f"or {VARIABLE}={name.name}={fitting[0].distribution}",
        )
    return PluginChoice(fitting[0], name, f"serves {name}")


def not_found(index: PluginIndex, asked: Sequence[AskedName], found: str | None = None) -> PluginNotFoundError:
    """Returns the error that no plugin serves these names; `found` says why the one that takes any does not."""
    disabled = [info.distribution for name in asked for info in index.serving(name.name)]
    usable = sorted({info.name for info in index.plugins() if info.state is not PluginState.disabled} - {ANY})
    return PluginNotFoundError(
        f"no plugin for {asked[0]} (installed: {_nearest(asked[0].name, usable)})",
        found=found,
        cure=f"Take '-{disabled[0]}' out of {VARIABLE}" if disabled else _hint(asked, usable),
    )


def _nearest(name: str, usable: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name[:_MAX_COMPARED], usable, n=_MAX_NAMED, cutoff=0.0)
    rest = f" and {len(usable) - len(nearest)} more" if len(usable) > len(nearest) else ""
    return (", ".join(nearest) or "none") + rest


def _hint(asked: Sequence[AskedName], usable: Sequence[str]) -> str:
    known = [PUBLISHED[name.name] for name in asked if name.where == "model_type" and name.name in PUBLISHED]
    if known:
        return how_to_install(known[0])
    near = difflib.get_close_matches(asked[0].name[:_MAX_COMPARED], {*usable, *PUBLISHED}, n=1, cutoff=0.8)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    return f"{guess}`pipezoo plugins --available` lists all; docs/writing-a-plugin.md shows how to write one."
