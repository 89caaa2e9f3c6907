"""From a model's name to its files and the plugin that serves it."""

from __future__ import annotations

from pathlib import Path

from pipezoo.discovery.index import PluginIndex
from pipezoo.discovery.resolution import Resolution
from pipezoo.discovery.resolution import resolve as resolve_config
from pipezoo.files.checkpoint import Checkpoint, open_checkpoint
from pipezoo.files.hub import download, locate

__all__ = ["find", "resolve"]


def find(
    index: PluginIndex, model: str | Path, *, revision: str | None = None, plugin: str | None = None
) -> tuple[Checkpoint, Resolution]:
    """Returns a model's files, all of them downloaded, and the plugin to load it with.

    Args:
        index: the installed plugins.
        model: as for `registry.load`.
        revision: as for `registry.load`.
        plugin: as for `registry.load`.

    Raises:
        PluginError, ModelNotFoundError, GatedModelError, HubUnreachableError, CheckpointError: as `registry.load`.
    """
    checkpoint, resolution = _chosen(index, model, revision, plugin)
    complete = download(checkpoint.source)
    return checkpoint if complete == checkpoint.source else open_checkpoint(complete), resolution


def resolve(
    index: PluginIndex, model: str | Path, *, revision: str | None = None, plugin: str | None = None
) -> Resolution:
    """Says which plugin `find` would take, and why. Takes and raises what it does; downloads the config at most."""
    return _chosen(index, model, revision, plugin)[1]


def _chosen(
    index: PluginIndex, model: str | Path, revision: str | None, plugin: str | None
) -> tuple[Checkpoint, Resolution]:
    checkpoint = open_checkpoint(locate(model, revision=revision))
    return checkpoint, resolve_config(index, checkpoint.config, plugin=plugin)
