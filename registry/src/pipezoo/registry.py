"""The registry: one call from a model's name to a pipeline that answers.

    from pipezoo import registry

    llm = registry.load("org/model")
    llm.generate("Once upon a time", max_new_tokens=32)

Importing this module imports neither torch nor any plugin; `load`, `plan` and `resolve` do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipezoo.discovery import PluginIndex, PluginInfo
from pipezoo.hub import download, locate
from pipezoo.resolution import Resolution
from pipezoo.resolution import resolve as _resolve

if TYPE_CHECKING:
    from pipezoo.load import Checkpoint, LoadPlan
    from pipezoo_core.pipeline import TextGenerationPipeline

__all__ = ["load", "plan", "plugins", "refresh", "resolve"]

_index = PluginIndex()  # what is installed does not change while a process runs; `refresh` is for notebooks


def load(
    model: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    plugin: str | None = None,
    **settings: Any,
) -> TextGenerationPipeline:
    """Loads a model with the plugin that serves its config type.

    Args:
        model: a Hub id such as `"org/model"`, a folder, a `.gguf` file, or `"pkg:name"` for weights that an
            installed Python package carries.
        revision: a branch, tag or commit of the Hub repository.
        device: `"auto"`, `"cpu"`, or a GPU such as `"cuda:0"`.
        dtype: `"auto"`, or the precision to run in, such as `"float32"` or `"bfloat16"`.
        plugin: the distribution to take where several serve the type.
        **settings: of the pipeline: `max_length`, `max_batch_size`, `max_batch_tokens`, `attention`, `linear`,
            `enforce_eager`, `page_size`, `kv_cache_memory`, `enable_prefix_caching`, `data_parallel_degree`; and for a
            model that may use adapters `lora_paths`, `max_num_loras`, `max_lora_rank`. See `pipezoo_core.config`.

    Raises:
        PluginError: no plugin serves the model, several do, or the one that does is broken or refuses it.
        ModelNotFoundError, GatedModelError, HubUnreachableError: the files cannot be had.
        CheckpointError: the files are damaged, incomplete, unsafe, or do not fit the config.
        InvalidSettingError: a setting is unknown or out of range.
        InsufficientMemoryError, InsufficientPagesError: it does not fit; the message carries the plan.
    """
    from pipezoo.load import build_pipeline

    return build_pipeline(plan(model, revision=revision, device=device, dtype=dtype, plugin=plugin, **settings))


def plan(
    model: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    plugin: str | None = None,
    **settings: Any,
) -> LoadPlan:
    """Decides everything that `load` decides, without reading the weights. Takes and raises what `load` does."""
    from pipezoo.load import open_checkpoint, plan_load

    checkpoint, resolution = _choose(model, revision, plugin)
    complete = download(checkpoint.source)
    if complete != checkpoint.source:
        checkpoint = open_checkpoint(complete)
    return plan_load(checkpoint, resolution.architecture, device=device, dtype=dtype, settings=settings)


def resolve(model: str | Path, *, revision: str | None = None, plugin: str | None = None) -> Resolution:
    """Says which plugin `load` would take, and why. Downloads the config at most.

    Raises:
        PluginError: none can be chosen; the message says why.
        ModelNotFoundError, GatedModelError, HubUnreachableError: the config cannot be had.
    """
    return _choose(model, revision, plugin)[1]


def plugins() -> list[PluginInfo]:
    """Returns the installed plugins, one entry per model type. Imports none of them."""
    return _index.plugins()


def refresh() -> None:
    """Looks anew for installed plugins, for a plugin installed into a running process."""
    _index.refresh()


def _choose(model: str | Path, revision: str | None, plugin: str | None) -> tuple[Checkpoint, Resolution]:
    from pipezoo.load import open_checkpoint

    checkpoint = open_checkpoint(locate(model, revision=revision))
    return checkpoint, _resolve(_index, checkpoint.config, plugin=plugin)
