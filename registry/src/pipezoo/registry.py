"""The registry: one call from a model's name to a pipeline that answers.

    from pipezoo import registry

    llm = registry.load("org/model")
    llm.generate("Once upon a time", max_new_tokens=32)

Importing this module imports neither torch nor any plugin; `load`, `plan` and `resolve` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipezoo.discovery.index import PluginIndex, PluginInfo

if TYPE_CHECKING:
    from pipezoo.discovery.resolution import Resolution
    from pipezoo.loading.plan import LoadPlan
    from pipezoo_core.pipeline import TextGenerationPipeline

__all__ = ["load", "plan", "plugins", "refresh", "resolve"]

_index = PluginIndex()  # what is installed does not change while a process runs; `refresh` is for notebooks


def load(
    model: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    devices: Sequence[str] | None = None,
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
        devices: several of these in place of `device`, such as `["cuda:0", "cuda:1"]`. They compute every step
            together, each a part of the model, in a process of its own that is started here; or with a
            `data_parallel_degree` each replica has as many of them. Under a launcher such as torchrun, whose processes
            all run the same script, nothing is started, and only rank 0 goes on: in the others this call serves rank 0
            until it is done, and then raises SystemExit.
        dtype: `"auto"`, or the precision to run in: `"float32"`, `"bfloat16"`, `"float16"`, `"int8"` or `"int4"`.
        plugin: the distribution to take where several serve the type.
        **settings: of the pipeline: `max_length`, `max_batch_size`, `max_batch_tokens`, `attention`, `linear`,
            `enforce_eager`, `page_size`, `kv_cache_memory`, `enable_prefix_caching`, `data_parallel_degree`,
            `rank_timeout`; and for a model that may use adapters, now or later, `lora_paths`, `max_num_loras`,
            `max_lora_rank`. Their defaults are in docs/settings.md.

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
    from pipezoo.loading.build import build_pipeline
    from pipezoo.loading.devices import device_names
    from pipezoo.loading.inherited_threads import check_inherited_threads
    from pipezoo.loading.plan import asked_config

    check_inherited_threads()
    num_replicas = asked_config(settings).data_parallel_degree
    names = device_names(device, devices, num_replicas)
    if len(names) > num_replicas:
        from pipezoo.loading.find import find
        from pipezoo.loading.parallel import load_parallel

        return load_parallel(lambda: find(_index, model, revision=revision, plugin=plugin), names, dtype, settings)
    return build_pipeline(
        plan(model, revision=revision, device=device, devices=devices, dtype=dtype, plugin=plugin, **settings)
    )


def plan(
    model: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    devices: Sequence[str] | None = None,
    dtype: str = "auto",
    plugin: str | None = None,
    **settings: Any,
) -> LoadPlan:
    """Decides everything that `load` decides. Downloads the model, and reads no weights but their headers.

    Takes and raises what `load` does.
    """
    from pipezoo.loading.devices import device_names
    from pipezoo.loading.find import find
    from pipezoo.loading.plan import asked_config, plan_load

    names = device_names(device, devices, asked_config(settings).data_parallel_degree)
    checkpoint, resolution = find(_index, model, revision=revision, plugin=plugin)
    return plan_load(checkpoint, resolution.architecture, devices=names, dtype=dtype, settings=settings)


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
