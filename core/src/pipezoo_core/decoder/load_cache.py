"""What decides which packed weights a load makes: the identity of its entry in the load cache."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipezoo_core.config import LinearName, PipelineConfig, SupportedEncoding
from pipezoo_core.file_names import CONFIG, WEIGHTS_INDEX, is_gguf
from pipezoo_core.gguf_parts import part_names
from pipezoo_core.layers import choose_linear
from pipezoo_core.native import MODULE, NativeKernels
from pipezoo_core.session import InferenceSession
from pipezoo_core.weights.load_cache import CacheEntry, LoadCache, file_content

__all__ = ["cache_entry"]


def cache_entry(
    pipeline_config: PipelineConfig, encoding: SupportedEncoding, session: InferenceSession, kernels: NativeKernels
) -> CacheEntry | None:
    """Returns what is kept of a load; None where nothing is, because no cache is wanted or no weight is packed.

    Raises:
        InvalidSettingError: the backend of linear layers cannot be used here.
        UnreadableFileError: a weight file cannot be read.
    """
    folder = pipeline_config.load_cache
    if folder is None or not pipeline_config.weight_paths:
        return None
    if choose_linear(pipeline_config.linear, session.device, encoding, kernels) is not LinearName.native:
        return None
    cache = LoadCache(Path(folder), pipeline_config.load_cache_size)
    files = [file_content(path, cache.folder) for path in _files(pipeline_config.weight_paths)]
    return cache.entry(_identity(pipeline_config, encoding, session), files)


def _identity(config: PipelineConfig, encoding: SupportedEncoding, session: InferenceSession) -> dict[str, Any]:
    kernels = importlib.import_module(MODULE).__file__
    assert kernels is not None
    what = config.huggingface_config
    return {
        "config": what.to_dict() if what is not None else None,
        "plugin": config.plugin,
        "core": importlib.metadata.version("pipezoo-core"),
        "kernels": hashlib.sha256(Path(kernels).read_bytes()).hexdigest(),  # of this CPU's instructions
        "encoding": encoding,
        "fused": [config.fuses_layers, config.fuses_experts],
        "rank": [session.group.rank, session.group.size],
    }


def _files(paths: Sequence[Path]) -> list[Path]:
    """Returns all files that decide which numbers a checkpoint has: its parts, their index, and how they are read."""
    first = paths[0]
    if is_gguf(first):
        return [first.with_name(name) for name in part_names(first.name)]
    beside = [first.with_name(name) for name in (WEIGHTS_INDEX, CONFIG)]
    return [*paths, *(path for path in beside if path.is_file())]
