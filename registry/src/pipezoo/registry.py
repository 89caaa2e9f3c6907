"""The registry: one call from a model's name to a pipeline that answers.

    from pipezoo import registry

    llm = registry.load("org/model")
    llm.generate("Once upon a time", max_new_tokens=32)

Importing this module imports neither torch nor any plugin; `load`, `plan` and `resolve` do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pipezoo.discovery.index import PluginIndex, PluginInfo

if TYPE_CHECKING:
    from pipezoo.discovery.resolution import Resolution
    from pipezoo.loading.find import FoundModel
    from pipezoo.loading.options import LoadOptions
    from pipezoo.loading.plan import LoadPlan
    from pipezoo.loading.quantize import QuantizedSizes
    from pipezoo.loading.settings import LoadSettings
    from pipezoo_core.pipeline import TextGenerationPipeline

__all__ = ["load", "plan", "plugins", "quantize", "refresh", "resolve"]

_index = PluginIndex()  # what is installed does not change while a process runs; `refresh` is for notebooks


def load(model: str | Path, **settings: Unpack[LoadOptions]) -> TextGenerationPipeline:
    """Loads a model with the plugin that serves its config type.

    Args:
        model: a Hub id such as `"org/model"`, a folder, a `.gguf` file, or `"pkg:name"` for weights that an
            installed Python package carries.
        **settings: docs/settings.md has all of them, with their defaults. The most used are `device` (`"cpu"`, or a GPU
            such as `"cuda:0"`), `dtype` (`"bfloat16"`, or `"int8"` and `"int4"` to quantize), `max_length` and
            `kv_cache_memory`. With several `devices`, such as `["cuda:0", "cuda:1"]`, they compute every step
            together, each a part of the model, in a process of its own that is started here; or with a
            `data_parallel_degree` each replica has as many of them. Under a launcher such as torchrun, whose processes
            all run the same script, nothing is started, and only rank 0 goes on: in the others this call serves rank 0
            until it is done, and then raises SystemExit.

    Returns:
        The pipeline, ready to answer.

    Raises:
        PluginError: no plugin serves the model, several do, or the one that does is broken or refuses it.
        ModelNotFoundError, GatedModelError, HubUnreachableError: the files cannot be had.
        CheckpointError: the files are damaged, incomplete, unsafe, or do not fit the config.
        InvalidSettingError: a setting is unknown or out of range.
        UnsupportedAttentionError: the attention backend that was asked for cannot do what the model needs here.
        UnsupportedTokenizerError: the tokenizer cannot be read.
        InsufficientMemoryError, InsufficientPagesError: it does not fit; the message carries the plan.
        RankLostError: another device's process is gone.
        ForkedProcessError: this process was forked from one that had computed before.
    """
    asked = _checked(settings)
    from pipezoo.loading.build import build_pipeline
    from pipezoo.loading.inherited_threads import check_inherited_threads
    from pipezoo.loading.plan import plan_load

    check_inherited_threads()
    if asked.has_several_ranks:
        from pipezoo.loading.parallel import load_parallel

        return load_parallel(lambda: _found(model, asked), asked)
    return build_pipeline(plan_load(_found(model, asked), asked))


def plan(model: str | Path, **settings: Unpack[LoadOptions]) -> LoadPlan:
    """Decides everything that `load` decides. Downloads the model, and reads no weights but their headers.

    Takes and raises what `load` does.
    """
    asked = _checked(settings)
    from pipezoo.loading.plan import plan_load

    return plan_load(_found(model, asked), asked)


def quantize(
    model: str | Path,
    folder: str | Path,
    *,
    dtype: str = "int4",
    revision: str | None = None,
    plugin: str | None = None,
) -> QuantizedSizes:
    """Writes a model with its weights rounded, which computes what `load` with the dtype does, and loads faster.

    Args:
        model: as for `load`.
        folder: the new folder; it is there when it is whole.
        dtype: `"int8"` or `"int4"`.
        revision: as for `load`.
        plugin: as for `load`.

    Returns:
        The sizes of the weight files, before and after.

    Raises:
        PluginError, ModelNotFoundError, GatedModelError, HubUnreachableError, CheckpointError: as `load`.
        InvalidSettingError: the dtype is another, or the model does not support it.
        UnwritableFileError: there is such a folder, or it cannot be written.
    """
    from pipezoo.loading.find import find
    from pipezoo.loading.quantize import quantize_model
    from pipezoo_core.local_file import local_path

    return quantize_model(find(_index, model, revision=revision, plugin=plugin), local_path(folder), dtype)


def resolve(model: str | Path, *, revision: str | None = None, plugin: str | None = None) -> Resolution:
    """Says which plugin `load` would take, and why. Downloads the config at most.

    A repository that has a GGUF file and no config.json is downloaded whole, because the config is in that file.

    Raises:
        PluginError: none can be chosen; the message says why.
        ModelNotFoundError, GatedModelError, HubUnreachableError: the config cannot be had.
    """
    from pipezoo.loading.find import resolve

    return resolve(_index, model, revision=revision, plugin=plugin)


def plugins() -> list[PluginInfo]:
    """Returns the installed plugins, one entry per distribution and name that it serves. Imports none of them."""
    return _index.plugins()


def refresh() -> None:
    """Looks anew for installed plugins, for a plugin installed into a running process."""
    _index.refresh()


def _checked(settings: Mapping[str, Any]) -> LoadSettings:
    """Checks the settings before anything heavy is imported."""
    from pipezoo.loading.settings import LoadSettings

    return LoadSettings(**settings)


def _found(model: str | Path, settings: LoadSettings) -> FoundModel:
    from pipezoo.loading.find import find

    return find(_index, model, revision=settings.revision, plugin=settings.plugin)
