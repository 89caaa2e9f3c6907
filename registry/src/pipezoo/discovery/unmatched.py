"""What PIPEZOO_PLUGINS names and nothing matches: a name misspelt, or a plugin that is not here."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pipezoo.discovery.metadata import PluginInfo
from pipezoo.discovery.setting import VARIABLE, PluginSetting

__all__ = ["unmatched_items"]


def unmatched_items(setting: PluginSetting, claims: Sequence[PluginInfo]) -> list[str]:
    """Returns a sentence for each item of the setting that has no effect, or makes a load fail."""
    served: dict[str, list[str]] = {}
    for claim in claims:
        served.setdefault(claim.distribution, []).append(claim.name)
    found = [_missing(f"-{name}", name, served) for name in sorted(setting.disabled) if name not in served]
    for wanted, name in setting.pins.items():
        item = f"{wanted}={name}"
        if name not in served:
            found.append(_missing(item, name, served))
        elif wanted not in served[name]:
            found.append(f"{VARIABLE}: {item!r} matches nothing, {name} serves {', '.join(served[name])}")
    return found


def _missing(item: str, name: str, served: dict[str, list[str]]) -> str:
    near = difflib.get_close_matches(name, served, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    return f"{VARIABLE}: {item!r} matches nothing, no plugin {name!r} is installed{guess}"
