"""All that is looked at, together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipezoo.diagnosis.finding import Finding, Status
from pipezoo.diagnosis.plugins import loaded_plugins, plugin_findings
from pipezoo.diagnosis.surroundings import hub_findings, kernel_findings, torch_findings
from pipezoo.diagnosis.versions import version_findings
from pipezoo.discovery.index import PluginIndex, PluginInfo

__all__ = ["Diagnosis", "diagnose"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found.

    Attributes:
        sections: the findings, by what they are about.
        plugins: every installed plugin, one entry per name that it serves, in its state after it was imported.
    """

    sections: Mapping[str, list[Finding]]
    plugins: list[PluginInfo]

    @property
    def is_broken(self) -> bool:
        """Whether anything keeps a model from being served."""
        return any(finding.status is Status.broken for findings in self.sections.values() for finding in findings)


def diagnose(index: PluginIndex) -> Diagnosis:
    """Looks at everything. Imports torch and every plugin; asks nothing of the Hub.

    Raises:
        InvalidSettingError: PIPEZOO_PLUGINS cannot be understood.
    """
    plugins = loaded_plugins(index)
    sections = {
        "versions": list(version_findings()),
        "torch": list(torch_findings()),
        "kernels": list(kernel_findings()),
        "Hub": list(hub_findings()),
        "plugins": list(plugin_findings(index, plugins)),
    }
    return Diagnosis(sections, plugins)
