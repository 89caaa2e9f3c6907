"""What decides which packed weights a load makes: the identity of its entry in the load cache."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pipezoo_core.config import LinearName, PipelineConfig, SupportedEncoding
from pipezoo_core.file_names import CONFIG, WEIGHTS_INDEX, is_gguf
from pipezoo_core.layers import choose_linear
from pipezoo_core.local_file import readable
from pipezoo_core.native import MODULE, NativeKernels
from pipezoo_core.session import InferenceSession
from pipezoo_core.weights.load_cache import CacheEntry, LoadCache, file_content

__all__ = ["cache_entry"]


def cache_entry(
    module_class: type,
    pipeline_config: PipelineConfig,
    encoding: SupportedEncoding,
    session: InferenceSession,
    kernels: NativeKernels,
) -> CacheEntry | None:
    """Returns what is kept of a load; None where nothing is, because no cache is wanted or no weight is packed.

    Args:
        module_class: the plugin's, whose package has what changes the weights.
        pipeline_config: how the model runs.
        encoding: its precision.
        session: where it runs.
        kernels: of the model.

    Raises:
        InvalidSettingError: the backend of linear layers cannot be used here.
        UnreadableFileError: a weight file, or a source, cannot be read.
    """
    folder = pipeline_config.load_cache
    if folder is None or not pipeline_config.weight_paths:
        return None
    if choose_linear(pipeline_config.linear, session.device, encoding, kernels) is not LinearName.native:
        return None
    cache = LoadCache(Path(folder), pipeline_config.load_cache_size)
    files = [file_content(path, cache.folder) for path in _files(pipeline_config.weight_paths)]
    identity = _identity(module_class, pipeline_config, encoding, session)
    return cache.entry(identity, files, num_ranks=session.group.size)


def _identity(
    module_class: type, config: PipelineConfig, encoding: SupportedEncoding, session: InferenceSession
) -> dict[str, Any]:
    kernels = importlib.import_module(MODULE).__file__
    assert kernels is not None
    what = config.huggingface_config
    return {
        "config": what.to_dict() if what is not None else None,
        "plugin": config.plugin,
        "core": importlib.metadata.version("pipezoo-core"),
        "sources": {name: _sources_hash(name) for name in _packages(module_class)},  # which change without a version
        "kernels": hashlib.sha256(Path(kernels).read_bytes()).hexdigest(),  # of this CPU's instructions
        "encoding": encoding,
        "fused": [config.fuses_layers, config.fuses_experts],
        "rank": [session.group.rank, session.group.size],
    }


def _packages(module_class: type) -> list[str]:
    """Returns the packages of core, of a module, and of modules that it extends."""
    modules = [each for each in module_class.__mro__ if issubclass(each, nn.Module)]
    return sorted({"pipezoo_core", *(each.__module__.partition(".")[0] for each in modules)} - {"torch"})


@functools.cache  # a process goes on with the code that it has begun with
def _sources_hash(package: str) -> str:
    """Returns the SHA-256 of the sources of a package, or of a module that is in none."""
    module = sys.modules.get(package)
    found = hashlib.sha256()
    for folder in map(Path, getattr(module, "__path__", ())):
        for path in sorted(folder.rglob("*.py")):
            with readable(path):
                data = path.read_bytes()
            found.update(f"{path.relative_to(folder).as_posix()} {len(data)} ".encode() + data)
    if not hasattr(module, "__path__") and (file := getattr(module, "__file__", None)) is not None:
        with readable(Path(file)):
            found.update(Path(file).read_bytes())
    return found.hexdigest()


def _files(paths: Sequence[Path]) -> list[Path]:
    """Returns all files that decide which numbers a checkpoint has: its parts, their index, and how they are read."""
    first = paths[0]
    if is_gguf(first):
        return list(paths)
    beside = [first.with_name(name) for name in (WEIGHTS_INDEX, CONFIG)]
    return [*paths, *(path for path in beside if path.is_file())]
