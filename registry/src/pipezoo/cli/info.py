"""What `pipezoo info` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from pipezoo_core.config import SupportedEncoding
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.native import NativeKernels, bits_per_number
from pipezoo_core.weights import torch_dtype

if TYPE_CHECKING:
    from pipezoo.discovery.resolution import Resolution
    from pipezoo.loading.plan import LoadPlan
    from pipezoo_core.kv_cache import KVCacheParams
    from pipezoo_core.layers import StoredType

__all__ = ["tables"]


def tables(resolution: Resolution, plan: LoadPlan) -> Iterator[Table]:
    """Yields the sections: model, settings, what a file has quantized, sampling, memory."""
    chosen = resolution.plugin
    yield _table(
        "model",
        [
            ("name", plan.files.source.name),
            ("files", plan.files.source.path),
            ("architecture", plan.architecture.name),
            ("plugin", f"{chosen.distribution} {chosen.version}"),
            *_shape(plan),
        ],
    )
    config = plan.pipeline_config
    obstacle = NativeKernels(plan.devices[0], torch_dtype(config.encoding)).obstacle
    yield _table(
        "settings in force",
        [
            (name, getattr(config, name))
            for name in type(config).model_fields
            if name not in ("weight_paths", "kv_cache", "stored_types")
        ]
        + [(f"kv_cache.{name}", getattr(config.kv_cache, name)) for name in type(config.kv_cache).model_fields]
        + [("native kernels", obstacle or "usable"), *_steps(plan)],
    )
    if rows := list(_quantized(plan)):
        yield _table("quantized tensors of the file", rows)
    yield _table("sampling defaults", plan.files.sampling_params)
    memory = plan.memory
    yield _table(
        _whose_memory(memory.num_replicas, config.tensor_parallel_degree),
        [
            ("weights", _size(memory.weights)),
            ("activations", _size(memory.activations)),
            ("adapters", _size(memory.lora)),
            *([("states", _size(memory.states))] if memory.states else []),
            ("KV cache", _size(memory.kv_cache)),
            ("free now", _size(memory.available)),
            ("tokens in the cache", memory.num_cache_tokens),
            (f"requests of {memory.max_length} tokens", f"{memory.concurrency:.1f}"),
        ],
    )


def _quantized(plan: LoadPlan) -> Iterator[tuple[str, str]]:
    """Yields the types of a file's quantized tensors, and what becomes of those of each, with the reason."""
    stored = [tensor.stored.type for tensor in plan.files.weights.values() if tensor.stored]
    types, counts = {type_.name: type_ for type_ in stored}, Counter(type_.name for type_ in stored)
    for name, count in sorted(counts.items()):
        yield f"{name}, {count} tensor{'s' if count > 1 else ''}", _fate(plan, types[name])


def _fate(plan: LoadPlan, type_: StoredType) -> str:
    config, model = plan.pipeline_config, plan.architecture.pipeline_model
    if config.encoding is not SupportedEncoding.packed:
        again = ", to which the numbers are rounded again" if config.encoding.rounds_weights else ""
        return f"dequantized: dtype is {config.encoding}{again}"
    if type_.packing is None:
        return "dequantized to bfloat16: there is no packed form of this type"
    kept: set[str] = set()
    if issubclass(model, DecoderPipelineModel):
        kept = model.kept_tensors(config, plan.files.huggingface_config)
    of_type = {name for name, each in config.stored_types.items() if each.name == type_.name}
    dequantized = "dequantized to bfloat16: no layer computes it packed"
    if not of_type & kept:
        return dequantized
    packed = f"kept packed, {bits_per_number(type_.packing):.4g} bits per number"
    return packed if of_type <= kept else f"{packed}; some {dequantized}"


def _steps(plan: LoadPlan) -> list[tuple[str, str]]:
    model = plan.architecture.pipeline_model
    if not issubclass(model, DecoderPipelineModel):
        return [("replayed steps", "no: the plugin's model computes its steps itself")]
    outlook = model.step_outlook(plan.pipeline_config, plan.files.huggingface_config)
    return [("attention by", outlook.attention), ("replayed steps", outlook.replay)]


def _whose_memory(num_replicas: int, num_devices: int) -> str:
    shares = [f"each of {num_devices} devices"] if num_devices > 1 else []
    shares += [f"each of {num_replicas} replicas"] if num_replicas > 1 else []
    return " of ".join(["memory", *shares])


def _shape(plan: LoadPlan) -> Iterator[tuple[str, Any]]:
    model = plan.architecture.pipeline_model
    config = plan.pipeline_config
    params = model.get_kv_params(  # type: ignore[attr-defined]  # every text model so far has a KV cache
        plan.files.huggingface_config, config.tensor_parallel_degree, config.kv_cache, torch_dtype(config.encoding)
    )
    yield "parameters", f"{sum(tensor.num_elements for tensor in plan.files.weights.values()):,}"
    yield "layers", model.get_num_layers(plan.files.huggingface_config)  # type: ignore[attr-defined]  # likewise
    yield from _groups(params)
    yield "vocabulary", plan.files.huggingface_config.vocab_size


def _groups(params: KVCacheParams) -> Iterator[tuple[str, Any]]:
    for group in params.groups:
        label = "KV heads × size"
        if len(params.groups) > 1:
            label += f", {len(group.layers)} layers"
        value = f" + {group.value_dim}" if group.value_dim != group.head_dim else ""
        reach = "" if group.reach is None else f", the last {group.reach} tokens"
        yield label, f"{group.num_kv_heads} × {group.head_dim}{value}{reach}"
    if params.slot_bytes:
        yield "layers with a state", sum(spec is not None for spec in params.states)
        yield "state of a request", f"{params.slot_bytes:,} bytes"


def _table(title: str, rows: Iterable[tuple[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(Text(str(name)), Text(str(value)))  # as text, brackets are not taken for markup
    return table


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
