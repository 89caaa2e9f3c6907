"""An installed plugin, found as the registry finds it: by the metadata of its distribution."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.hookspecs import ENTRY_POINT_GROUP
from pipezoo_core.testing.failures import ConformanceError

__all__ = ["PluginUnderTest"]

_ANY = "*"  # what a plugin claims, and its architecture serves, that takes what no other one does


@dataclass(frozen=True, slots=True)
class PluginUnderTest:
    """What a distribution says that it serves.

    Attributes:
        distribution: its name.
        claims: the names that it claims in the group `pipezoo.plugins`, each with the module that serves it.
    """

    distribution: str
    claims: Mapping[str, str]

    @classmethod
    def of_distribution(cls, distribution: str) -> PluginUnderTest:
        """Returns the plugin of a distribution.

        Raises:
            ConformanceError: it is not installed, or claims nothing.
        """
        found = _installed()
        wanted = _normalised(distribution)
        if wanted not in found:
            raise ConformanceError(
                f"no plugin {distribution!r} is installed",
                found=sorted(found),
                cure="Install it (`pip install -e .`) and look at the entry points in its pyproject.toml: "
                f'they stand in [project.entry-points."{ENTRY_POINT_GROUP}"].',
            )
        return found[wanted]

    @classmethod
    def serving(cls, name: str) -> PluginUnderTest:
        """Returns the only plugin that claims a `model_type`.

        Raises:
            ConformanceError: none does, or several.
        """
        found = [plugin for plugin in _installed().values() if name in plugin.claims]
        if len(found) == 1:
            return found[0]
        raise ConformanceError(
            f"not one plugin serves model_type {name!r}",
            found=[plugin.distribution for plugin in found],
            allowed="one",
            cure=f'Claim it in [project.entry-points."{ENTRY_POINT_GROUP}"] of pyproject.toml and install the package '
            "again, or name the distribution: `distribution` of the test class.",
        )

    def module(self, name: str) -> ModuleType:
        """Imports the module that serves one of the claims.

        Raises:
            ConformanceError: the plugin does not claim it, or the module cannot be imported; the cause is chained.
        """
        claim = name if name in self.claims else _ANY
        if claim not in self.claims:
            raise ConformanceError(
                f"{self.distribution} does not serve model_type {name!r}",
                found=sorted(self.claims),
                cure="An entry point's name is the model_type in config.json, to the letter.",
            )
        try:
            return importlib.import_module(self.claims[claim])
        except Exception as error:  # the plugin's own code may fail in any way
            raise ConformanceError(
                f"the module {self.claims[claim]} of {self.distribution} cannot be imported",
                found=f"{type(error).__name__}: {error}",
                cure="An entry point's value is a module of the package, without a function behind it.",
            ) from error

    def architectures(self, name: str) -> list[SupportedArchitecture]:
        """Returns what the module answers that serves one of the claims.

        Raises:
            ConformanceError: as `module`, or the hook is not there or does not answer with architectures.
        """
        module = self.module(name)
        hook = getattr(module, "pipezoo_architectures", None)
        if not callable(hook):
            raise ConformanceError(
                f"{module.__name__} has no function pipezoo_architectures",
                cure="Define it there, marked with @hookimpl of pipezoo_core.hookspecs.",
            )
        try:
            found = hook()
        except Exception as error:  # likewise
            raise ConformanceError(
                f"pipezoo_architectures() of {module.__name__} does not answer",
                found=f"{type(error).__name__}: {error}",
                cure="It describes what the plugin serves, and asks for nothing but the plugin's own modules.",
            ) from error
        is_list = isinstance(found, list) and found
        if not is_list or not all(isinstance(each, SupportedArchitecture) for each in found):
            raise ConformanceError(
                f"pipezoo_architectures() of {module.__name__} does not return architectures",
                found=repr(found),
                allowed="a list of SupportedArchitecture, at least one",
            )
        return list(found)

    def architecture(self, config: Mapping[str, Any]) -> SupportedArchitecture:
        """Returns the architecture that serves a config.json, chosen as the registry does.

        Raises:
            ConformanceError: as `architectures`, or none of them serves it.
        """
        model_type = config.get("model_type")
        if not isinstance(model_type, str):
            raise ConformanceError(
                "a config says no model_type",
                found=sorted(config),
                cure='Each config is what a config.json says, with `"model_type"`.',
            )
        offered = self.architectures(model_type)
        named = config.get("architectures") or []
        serving = [
            each
            for each in offered
            if _ANY in each.model_types or (model_type in each.model_types and (not named or named[0] in each.names))
        ]
        if len(serving) == 1:
            return serving[0]
        raise ConformanceError(
            f"{self.distribution} claims model_type {model_type!r}, and not one of its architectures serves it",
            found=[f"{each.name}: {', '.join(each.model_types)}" for each in offered],
            allowed=f"one whose model_types have {model_type!r}"
            + (f", with name or alias {named[0]}" if named else ""),
            cure="Compare the entry points in pyproject.toml with SupportedArchitecture in the plugin's module.",
        )


def _installed() -> dict[str, PluginUnderTest]:
    claims: dict[str, dict[str, str]] = {}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if entry.dist is not None:
            claims.setdefault(entry.dist.name, {}).setdefault(entry.name, entry.value)
    return {_normalised(name): PluginUnderTest(name, of_one) for name, of_one in claims.items()}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
