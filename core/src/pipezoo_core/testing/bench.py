"""What the checks of one plugin share: the plugin, and its configs, each made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pipezoo_core.testing.failures import ConformanceError
from pipezoo_core.testing.plugin_under_test import PluginUnderTest
from pipezoo_core.testing.reference import make_reference
from pipezoo_core.testing.subject import Subject
from pipezoo_core.testing.tiny_configs import sharpened

__all__ = ["Bench"]

Configs = Mapping[str, Mapping[str, Any]]


class Bench:
    """Makes what checks look at, and keeps it for the next check.

    Args:
        folder: an empty one.
        distribution: of the plugin; None for the only one that claims the configs' types.
        reference: the class of the reference implementation; None for transformers'.
        write_gguf: writes the reference as a GGUF file; None for the kit's own writer.
    """

    def __init__(
        self,
        folder: Path,
        distribution: str | None = None,
        reference: Callable[[Any], nn.Module] | None = None,
        write_gguf: Callable[[nn.Module, Path], None] | None = None,
    ) -> None:
        self.folder = folder
        self._distribution = distribution
        self._reference = reference
        self._write_gguf = write_gguf
        self._subjects: dict[str, Subject] = {}
        self._plugin: PluginUnderTest | None = None

    def plugin(self, configs: Configs) -> PluginUnderTest:
        """Returns the plugin that is checked, the same for all configs.

        Raises:
            ConformanceError: none or several serve the configs, or there are no configs.
        """
        if self._plugin is None:
            self._plugin = self._found(configs)
        return self._plugin

    def _found(self, configs: Configs) -> PluginUnderTest:
        if self._distribution is not None:
            return PluginUnderTest.of_distribution(self._distribution)
        first = next(iter(configs.items()), None)
        if first is None:
            raise ConformanceError(
                "there are no configs to check", cure="Return one at least from the fixture `configs`."
            )
        name, config = first
        if "model_type" not in config:
            raise ConformanceError(
                f"config {name!r} says no model_type", cure="Each config is what a config.json says."
            )
        return PluginUnderTest.serving(config["model_type"])

    def subjects(self, configs: Configs) -> Sequence[Subject]:
        """Returns what the checks look at, one for each config.

        Raises:
            ConformanceError: as `plugin`, or a config or its reference is of no use.
        """
        plugin = self.plugin(configs)
        return [self._subject(plugin, name, config) for name, config in configs.items()]

    def _subject(self, plugin: PluginUnderTest, name: str, config: Mapping[str, Any]) -> Subject:
        key = json.dumps([name, config], sort_keys=True, default=str)
        if key not in self._subjects:
            architecture = plugin.architecture(config)
            telling = sharpened(config)
            folder = self.folder / f"{len(self._subjects)}"
            reference = make_reference(telling, self._reference)
            self._subjects[key] = Subject(name, telling, architecture, reference, folder, self._write_gguf)
        return self._subjects[key]
