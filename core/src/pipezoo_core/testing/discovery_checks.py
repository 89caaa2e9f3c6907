"""Is the plugin found, and does it cost nothing until it is used?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from pipezoo_core.hookspecs import ACCEPTED_API_VERSIONS, API_VERSION, ENTRY_POINT_GROUP
from pipezoo_core.testing.failures import ConformanceError
from pipezoo_core.testing.plugin_under_test import PluginUnderTest
from pipezoo_core.testing.subject import Subject

__all__ = ["check_discovery", "check_rediscovery"]

_HEAVY = ("torch", "transformers", "numpy", "tokenizers", "safetensors", "huggingface_hub")
_BUDGET = 0.3  # seconds of a processor for a plugin's own modules
_TIMEOUT = 300
_IMPORT = """
import importlib, json, sys, time
import pipezoo_core.architecture, pipezoo_core.hookspecs
begun = time.process_time()
for name in {modules!r}:
    importlib.import_module(name)
took = time.process_time() - begun
print(json.dumps([took, [name for name in {heavy!r} if name in sys.modules]]))
"""
_FIND = """
import importlib, importlib.metadata, json
found = [
    [entry.name, entry.value]
    for entry in importlib.metadata.entry_points(group={group!r})
    if entry.dist is not None and entry.dist.name == {distribution!r}
]
asked = [importlib.import_module(module).pipezoo_architectures() for _, module in found]
print(json.dumps([found, [each.name for answer in asked for each in answer]]))
"""


def check_discovery(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """The plugin's modules import neither torch nor anything else that is heavy, in little time, and say their version.

    What imports torch belongs into `pipezoo_architectures`.
    """
    del subjects
    modules = sorted(set(plugin.claims.values()))
    took, heavy = _run(_IMPORT.format(modules=modules, heavy=_HEAVY))
    if heavy:
        raise ConformanceError(
            f"importing {', '.join(modules)} imports what is heavy",
            found=heavy,
            cure="Listing plugins has to be quick. Most likely an import stands at the top of that module: move it "
            "into pipezoo_architectures(), and out of the package's __init__.py.",
        )
    if took > _BUDGET:
        raise ConformanceError(
            f"importing {', '.join(modules)} takes long",
            found=f"{took:.2f} s",
            allowed=f"{_BUDGET} s",
            cure="Move what takes long into pipezoo_architectures().",
        )
    for name in plugin.claims:
        version = getattr(plugin.module(name), "API_VERSION", None)
        if version not in ACCEPTED_API_VERSIONS:
            raise ConformanceError(
                f"{plugin.claims[name]} was not written for this version of pipezoo-core",
                found="no API_VERSION" if version is None else f"API_VERSION = {version!r}",
                allowed=ACCEPTED_API_VERSIONS,
                cure=f"Write API_VERSION = {API_VERSION} into that module.",
            )


def check_rediscovery(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """Another process finds the plugin by its metadata alone, as the ranks of a model do, and gets the same answer."""
    del subjects
    claims, names = _run(_FIND.format(group=ENTRY_POINT_GROUP, distribution=plugin.distribution))
    wanted = [each.name for name in plugin.claims for each in plugin.architectures(name)]
    if dict(claims) != dict(plugin.claims) or sorted(names) != sorted(wanted):
        raise ConformanceError(
            f"another process finds another {plugin.distribution} than this one",
            found=f"{sorted(names)} of {sorted(dict(claims))}",
            allowed=f"{sorted(wanted)} of {sorted(plugin.claims)}",
            cure="Most likely this process has registered or changed something that the metadata does not say.",
        )


def _run(code: str) -> Any:
    """Runs Python with this process's import path, and returns the JSON of its last line."""
    prefix = f"import sys\nsys.path[:] = {sys.path!r}\n"
    command = [sys.executable, "-c", prefix + code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConformanceError(
            "the plugin is not imported in time in a process of its own",
            found=f"no end after {_TIMEOUT} s",
            cure="Where other processes keep the machine busy, run the check again without them. Otherwise a module of "
            "the plugin waits for something while it is imported: move that into pipezoo_architectures().",
        ) from error
    if done.returncode:
        raise ConformanceError(
            "the plugin cannot be imported in a process of its own",
            found=done.stderr.strip().splitlines()[-1:],
            cure="Install the package, instead of putting it on this process's path.",
        )
    return json.loads(done.stdout.splitlines()[-1])
