"""What `pipezoo models` shows: the models in the Hub's cache, their sizes, and the plugins that serve them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipezoo import registry
from pipezoo_core.errors import PipezooError

__all__ = ["CachedModel", "cached_models"]


class CachedModel(NamedTuple):
    """One revision of a model in the cache.

    Attributes:
        name: of its repository, and the commit where it is not the only revision.
        num_bytes: on disk.
        plugin: the distribution that serves it, or why none does.
    """

    name: str
    num_bytes: int
    plugin: str


def cached_models() -> Iterator[CachedModel]:
    """Yields the models in the cache, by name, newest revision first.

    A plugin that could serve one is imported, as `registry.resolve` does it. Nothing is downloaded.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, ValueError):  # nothing was ever downloaded, or HF_HUB_CACHE is no folder
        return
    for repository in sorted(repositories, key=lambda repository: repository.repo_id.lower()):
        if repository.repo_type != "model":
            continue
        for revision in sorted(repository.revisions, key=lambda revision: -revision.last_modified):
            is_only = len(repository.revisions) == 1
            name = repository.repo_id if is_only else f"{repository.repo_id} {revision.commit_hash[:12]}"
            yield CachedModel(name, revision.size_on_disk, _serving(revision.snapshot_path))


def _serving(folder: Path) -> str:
    try:
        return registry.resolve(folder).plugin.distribution
    except PipezooError as error:
        return f"none: {error.what}"
