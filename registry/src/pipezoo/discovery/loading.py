"""Imports one plugin module in a guard and asks it for its architectures.

Knows nothing of other plugins: each module gets a `PluginManager` of its own, so that a half-registered or misspelt
hook of one can never be met by another, and a failed attempt leaves nothing behind.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pluggy

from pipezoo.discovery.published import how_to_mend
from pipezoo_core import hookspecs
from pipezoo_core.errors import BrokenPluginError, IncompatiblePluginError

if TYPE_CHECKING:
    from pipezoo_core.architecture import SupportedArchitecture

__all__ = ["load_architectures"]


def load_architectures(distribution: str, module_name: str) -> tuple[SupportedArchitecture, ...]:
    """Returns what the plugin serves, at least one architecture.

    After an error the plugin's modules are out of `sys.modules` again, so that the next call imports them anew.

    Args:
        distribution: the name to call the plugin by in messages.
        module_name: the module to import.

    Raises:
        BrokenPluginError: the module or its hook raised or gave something else than architectures; the cause is
            chained.
        IncompatiblePluginError: the module states no `API_VERSION`, or one that is not accepted.
    """
    importlib.invalidate_caches()  # a notebook may have installed or mended the plugin a moment ago
    known = set(sys.modules)
    try:
        module = importlib.import_module(module_name)
        _check_api_version(distribution, module)
        return _ask(module)
    except BaseException as error:
        _forget(module_name, known)
        if isinstance(error, IncompatiblePluginError) or not isinstance(error, Exception | SystemExit):
            raise
        raise BrokenPluginError(
            f"plugin {distribution!r} cannot be loaded",
            found=f"{type(error).__name__}: {error}",
            cure=f"`pipezoo plugins` shows the traceback. {how_to_mend(distribution)}",
        ) from error


def _check_api_version(distribution: str, module: ModuleType) -> None:
    found = getattr(module, "API_VERSION", None)
    if found not in hookspecs.ACCEPTED_API_VERSIONS:
        raise IncompatiblePluginError(
            f"plugin {distribution!r} was not made for this version of pipezoo-core",
            found=f"no API_VERSION in {module.__name__}" if found is None else f"API_VERSION = {found!r}",
            allowed=hookspecs.ACCEPTED_API_VERSIONS,
            cure=how_to_mend(distribution),
        )


def _ask(module: ModuleType) -> tuple[SupportedArchitecture, ...]:
    manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    manager.check_pending()
    answers = manager.hook.pipezoo_architectures()
    if not answers:
        raise TypeError(
            f"{module.__name__} has no function pipezoo_architectures marked @hookimpl, or it returned None"
        )
    return _checked(answers[0])


def _checked(answer: object) -> tuple[SupportedArchitecture, ...]:
    from pipezoo_core.architecture import SupportedArchitecture  # pydantic comes with it: not while listing

    if not isinstance(answer, list) or not answer:
        raise TypeError(f"pipezoo_architectures() returned {answer!r} instead of a list of architectures")
    for item in answer:
        if not isinstance(item, SupportedArchitecture):
            raise TypeError(f"pipezoo_architectures() returned {item!r} among its architectures")
    return tuple(answer)


def _forget(module_name: str, known: set[str]) -> None:
    package = module_name.partition(".")[0]
    for name in set(sys.modules) - known | {module_name}:
        if name == package or name.startswith(f"{package}."):
            sys.modules.pop(name, None)
