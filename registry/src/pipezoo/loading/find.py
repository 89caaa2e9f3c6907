"""From a model's name to its files and the plugin that serves it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipezoo.discovery.index import PluginIndex
from pipezoo.discovery.resolution import Resolution
from pipezoo.discovery.resolution import resolve as resolve_config
from pipezoo.files.checkpoint import Checkpoint, open_checkpoint
from pipezoo.files.hub import download, locate

__all__ = ["FoundModel", "find", "resolve"]


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model that can be loaded.

    Attributes:
        checkpoint: its files, all of them on disk.
        resolution: the plugin that serves it.
    """

    checkpoint: Checkpoint
    resolution: Resolution


def find(
    index: PluginIndex, model: str | Path, *, revision: str | None = None, plugin: str | None = None
) -> FoundModel:
    """Finds a model, downloads what is missing of it, and chooses its plugin.

    Args:
        index: the installed plugins.
        model: as for `registry.load`.
        revision: as for `registry.load`.
        plugin: as for `registry.load`.

    Raises:
        PluginError, ModelNotFoundError, GatedModelError, HubUnreachableError, CheckpointError: as `registry.load`.
    """
    begun = _chosen(index, model, revision, plugin)
    complete = download(begun.checkpoint.source, begun.resolution.architecture.files)
    is_whole = complete == begun.checkpoint.source
    return begun if is_whole else FoundModel(open_checkpoint(complete), begun.resolution)


def resolve(
    index: PluginIndex, model: str | Path, *, revision: str | None = None, plugin: str | None = None
) -> Resolution:
    """Says which plugin `find` would take, and why. Takes and raises what it does; downloads the config at most."""
    return _chosen(index, model, revision, plugin).resolution


def _chosen(index: PluginIndex, model: str | Path, revision: str | None, plugin: str | None) -> FoundModel:
    checkpoint = open_checkpoint(locate(model, revision=revision))
    return FoundModel(checkpoint, resolve_config(index, checkpoint.config, plugin=plugin))
