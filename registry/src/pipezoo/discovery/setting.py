"""The environment setting PIPEZOO_PLUGINS: which plugin serves a type, and which ones must never be used.

A comma-separated list of `type=distribution` (a pin) and `-distribution` (never use it), for instance
`llama=my-llama,-pipezoo-mistral`. Knows nothing of what is installed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from packaging.utils import InvalidName, canonicalize_name

from pipezoo_core.errors import InvalidSettingError

__all__ = ["VARIABLE", "PluginSetting"]

VARIABLE = "PIPEZOO_PLUGINS"


@dataclass(frozen=True, slots=True)
class PluginSetting:
    """What the user wishes about plugins.

    Attributes:
        pins: for a model type or architecture name, the normalised name of the distribution that must serve it.
        disabled: normalised names of the distributions that must never be imported.
    """

    pins: Mapping[str, str] = field(default_factory=dict)
    disabled: frozenset[str] = frozenset()

    @classmethod
    def from_environment(cls) -> PluginSetting:
        """Reads the environment variable as it is now.

        Raises:
            InvalidSettingError: an item is neither a pin nor a disabled distribution, or two items contradict.
        """
        return cls.parse(os.environ.get(VARIABLE, ""))

    @classmethod
    def parse(cls, text: str) -> PluginSetting:
        """Reads the setting's text; blank text is the empty setting.

        Raises:
            InvalidSettingError: an item is neither a pin nor a disabled distribution, or two items contradict.
        """
        pins: dict[str, str] = {}
        disabled: set[str] = set()
        for item in text.split(",") if text.strip() else ():
            served_type, equals, distribution = (part.strip() for part in item.rpartition("="))
            if served_type:
                name = _normalised(distribution, item)
                if pins.setdefault(served_type, name) != name:
                    raise _invalid(item, f"pins {served_type!r} a second time")
            elif not equals and distribution.startswith("-"):
                disabled.add(_normalised(distribution[1:], item))
            else:
                raise _invalid(item, "is neither a pin nor a disabled distribution")
        for served_type, name in pins.items():
            if name in disabled:
                raise _invalid(f"{served_type}={name}", "pins a distribution that another item disables")
        return cls(pins, frozenset(disabled))


def _normalised(distribution: str, item: str) -> str:
    try:
        return canonicalize_name(distribution.strip(), validate=True)
    except InvalidName:
        raise _invalid(item, "does not name a distribution") from None


def _invalid(item: str, problem: str) -> InvalidSettingError:
    return InvalidSettingError(
        f"{VARIABLE}: item {item.strip()!r} {problem}",
        allowed="type=distribution, -distribution, separated by commas",
        cure=f"For instance {VARIABLE}=llama=pipezoo-llama,-pipezoo-mistral",
    )
