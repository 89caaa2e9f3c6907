"""The one hook a plugin implements, and the version of the contract around it.

Imports nothing but pluggy: a plugin module must be importable without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from pipezoo_core.architecture import SupportedArchitecture

__all__ = ["ACCEPTED_API_VERSIONS", "API_VERSION", "ENTRY_POINT_GROUP", "PROJECT_NAME", "hookimpl", "hookspec"]

PROJECT_NAME = "pipezoo"
"""The name under which pluggy tells our hooks from those of other projects."""

ENTRY_POINT_GROUP = "pipezoo.plugins"
"""The group of entry points that the registry reads: `model_type` to the plugin's module."""

API_VERSION = 2
"""Version of the plugin contract. A plugin module states the one it was written for in its own `API_VERSION`."""

ACCEPTED_API_VERSIONS = (API_VERSION, API_VERSION - 1)
"""Versions for which a plugin may have been written: the current and the previous one."""

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
"""Marks what is a hook: `pipezoo_architectures`."""

hookimpl = pluggy.HookimplMarker(PROJECT_NAME)
"""Marks a plugin's own `pipezoo_architectures`."""


@hookspec
def pipezoo_architectures() -> list[SupportedArchitecture]:  # type: ignore[empty-body]  # pluggy calls the plugins
    """Returns the architectures this plugin serves. Called once, when the plugin is first chosen."""
