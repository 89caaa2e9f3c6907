"""Gives a module a checkpoint's tensors: every name accounted for, and never two copies of the weights."""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.errors import CheckpointMismatchError, UnsupportedCheckpointError
from pipezoo_core.layers.embedding import Embedding, LMHead
from pipezoo_core.layers.linear import Linear, MergedLinear
from pipezoo_core.layers.linear_backends import packed_weights
from pipezoo_core.layers.precision import float32_parameters, set_dtype
from pipezoo_core.layers.split import Shard, Shardable, shard_module
from pipezoo_core.layers.stored import StoredType, runs_of_parts
from pipezoo_core.native import MemoryPool
from pipezoo_core.weights.base import LazyTensor
from pipezoo_core.weights.keeping import Kept, kept_layers, stored_runs
from pipezoo_core.weights.progress import report_weights

__all__ = ["checked_tensors", "load_module"]

_LOGGER = logging.getLogger("pipezoo")

_NUM_THREADS = 4  # dequantizing leaves the interpreter lock most of the time


@torch.inference_mode(mode=False)  # its tensors are filled by other threads, to which a caller's mode does not reach
def load_module(
    module: nn.Module,
    tensors: Mapping[str, LazyTensor],
    device: torch.device,
    dtype: torch.dtype,
    convert: Callable[[nn.Module], None] | None = None,
    *,
    in_full: bool = False,
    keep_stored: bool = False,
    are_packed: bool = False,
    group: TensorParallelGroup | None = None,
) -> None:
    """Gives a module that was built on the meta device real parameters, filled from a checkpoint.

    Part after part, the largest first: where `convert` gives a part's weights another form, the first form is gone
    before the next part's is there. A parameter that two layers share stays shared, and buffers are moved.

    Args:
        module: on the meta device.
        tensors: by the names of its parameters, those of a `MergedLinear` by the names of its parts.
        device: where parameters and buffers will be.
        dtype: of the parameters, but of those that are float32 always, see `KeepsFloat32`.
        convert: called with each part when it is loaded.
        in_full: `convert` gets the weights of linear layers in float32; what it leaves of them is in `dtype` then.
        keep_stored: `convert` gets layers with a file's quantized rows in place of a weight, where the kernels have a
            form for these.
        are_packed: `convert` has what the native kernels pack, from an earlier load: no weight is read that only they
            read.
        group: the ranks that divide the module, where there are several; only this rank's part of the tensors is kept,
            and of rows read.

    Raises:
        CheckpointMismatchError: a name is missing or left over, or a shape differs. Nothing was read then. Integers and
            bools that are left over are buffers, which the module computes itself.
        UnsupportedCheckpointError: weights are integers, or integers are there in their place.
        InvalidSettingError: the module cannot be divided among so many.
    """
    slots, tensors = checked_tensors(module, tensors)
    names = slots.keys()
    quantized = _stored_types(tensors)
    if group is not None and group.size > 1:
        shard_module(module, group)
    shards = _shards(module)
    tensors = {name: _part(tensor, shards[name]) if name in shards else tensor for name, tensor in tensors.items()}
    wide = {layer.weight for layer in module.modules() if isinstance(layer, Linear) and in_full}
    wide |= float32_parameters(module)
    kept = kept_layers(module, _stored_types(tensors)) if keep_stored else {}
    if keep_stored:
        _log_dequantized(quantized, kept)
    real: weakref.WeakValueDictionary[int, nn.Parameter] = weakref.WeakValueDictionary()
    unread = packed_weights(module) if are_packed else set()
    memory = MemoryPool(exact=True)  # new memory costs as much time as reading: a part has that of the one before
    parts = sorted(_parts(module), key=lambda part: _matrices(part[1]), reverse=True)
    sizes = [_size(part) for _, part in parts]  # which `convert` changes
    report_weights(0, sum(sizes))
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for number, (prefix, part) in enumerate(parts, start=1):
            places = _keep(part, kept, tensors, None if are_packed else memory)
            _materialize(part, device, dtype, real, wide, memory, unread)
            memory.let_go()
            empty = {name: slot for name, slot in _slots(part, prefix).items() if name in names and not slot.is_meta}
            _fill([(tensors[name], slot) for name, slot in empty.items()] + places, pool)
            del empty, places  # `convert` can let go of the memory
            if convert is not None:
                convert(part)
            report_weights(sum(sizes[:number]), sum(sizes))
    set_dtype(module, dtype)


def checked_tensors(
    module: nn.Module, tensors: Mapping[str, LazyTensor]
) -> tuple[dict[str, Tensor], dict[str, LazyTensor]]:
    """Returns where a module wants tensors, by their names in a checkpoint, and those that it gets.

    Raises:
        CheckpointMismatchError, UnsupportedCheckpointError: as `load_module`.
    """
    slots = _slots(module)
    found = _without_empty_biases(slots, _floats(slots, tensors))
    _check(slots, found)
    return slots, found


def _fill(places: Sequence[tuple[LazyTensor, Tensor]], pool: ThreadPoolExecutor) -> None:
    """Reads tensors to where they belong."""
    list(pool.map(lambda place: place[0].copy_to(place[1]), places))


def _keep(
    part: nn.Module, kept: Kept, tensors: Mapping[str, LazyTensor], memory: MemoryPool | None
) -> list[tuple[LazyTensor, Tensor]]:
    """Gives layers memory for a file's rows in place of their weights; returns what is to be read to where.

    Without memory they have the shapes of the rows alone, and nothing is to be read.
    """
    places: list[tuple[LazyTensor, Tensor]] = []
    for layer in [layer for layer in part.modules() if isinstance(layer, Linear | Embedding) and layer in kept]:
        shared = [other for other in layer.shared if other.stored] if isinstance(layer, LMHead) else []
        if shared:
            layer.keep(shared[0].stored)
            continue
        stored = [tensors[name].stored for name in kept[layer]]
        types, sources = [each.type for each in stored if each], [each.bytes for each in stored if each]
        sizes = [source.shape[0] for source in sources]
        runs = stored_runs(types, sizes, layer.weight.shape[1], memory)
        layer.keep(runs)
        of_runs = zip(runs, runs_of_parts(runs, sizes), strict=True)
        places += zip(sources, [rows for run, parts in of_runs for rows in run.rows.split(parts)], strict=True)
    return places if memory is not None else []


def _stored_types(tensors: Mapping[str, LazyTensor]) -> dict[str, StoredType]:
    return {name: tensor.stored.type for name, tensor in tensors.items() if tensor.stored}


def _log_dequantized(types: Mapping[str, StoredType], kept: Kept) -> None:
    """Says which of a file's quantized tensors are dequantized, by their types."""
    others = Counter(types[name].name for name in types.keys() - {name for names in kept.values() for name in names})
    if others:
        counts = ", ".join(f"{count} of {name}" for name, count in sorted(others.items()))
        _LOGGER.info("tensors that are dequantized because no layer computes them packed: %s", counts)


def _floats(slots: Mapping[str, Tensor], tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Returns the tensors that can be weights; the others are buffers if all weights are there without them."""
    found = {name: tensor for name, tensor in tensors.items() if tensor.dtype.is_floating_point}
    integers = tensors.keys() - found.keys()
    if integers and slots.keys() - found.keys():
        raise UnsupportedCheckpointError(
            "weights of the checkpoint are integers",
            found=[
                f"{name}: {tensors[name].dtype}"
                for name in sorted(integers, key=lambda name: (name not in slots, name))
            ],
            allowed="floating-point numbers",
            cure="No quantization_config says how they are quantized; take the unquantized checkpoint or a GGUF file.",
        )
    return found


def _without_empty_biases(slots: Mapping[str, Tensor], tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Returns the tensors without biases of zeros of layers that have none: old writers of GPTQ made some."""

    def is_empty(name: str) -> bool:
        layer, _, parameter = name.rpartition(".")
        is_ours = parameter == "bias" and name not in slots and f"{layer}.weight" in tensors
        return is_ours and not tensors[name].load().any()

    return {name: tensor for name, tensor in tensors.items() if not is_empty(name)}


def _check(slots: Mapping[str, Tensor], tensors: Mapping[str, LazyTensor]) -> None:
    wrong_shape = [
        f"{name}: {list(tensors[name].shape)} -> {list(slot.shape)}"
        for name, slot in slots.items()
        if name in tensors and tensors[name].shape != tuple(slot.shape)
    ]
    missing, unexpected = slots.keys() - tensors.keys(), tensors.keys() - slots.keys()
    if missing or unexpected or wrong_shape:
        raise CheckpointMismatchError(missing=missing, unexpected=unexpected, wrong_shape=wrong_shape)


def _parts(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yields the elements of the module's lists, and what lies beside them, with their names."""
    has_lists = any(isinstance(child, nn.ModuleList) for child in module.modules())
    if not has_lists or module._parameters or module._buffers:
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _parts(child, f"{name}.{child_name}".lstrip("."))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _matrices(module: nn.Module) -> int:
    """A head with a bias is as large as the embedding whose weight it shares, so that this one is filled before."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)


def _materialize(
    part: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    real: weakref.WeakValueDictionary[int, nn.Parameter],
    in_full: Set[nn.Parameter],
    memory: MemoryPool,
    unread: Set[nn.Parameter],
) -> None:
    """Gives a part empty parameters in place of those without memory, and moves its buffers.

    Args:
        part: of a module on the meta device.
        device: of the parameters.
        dtype: of the parameters.
        real: the parameters made so far, by the identity of those that they stand for.
        in_full: those that are float32 whatever the dtype.
        memory: what they get on a CPU.
        unread: those that stay without memory.
    """
    for child in part.modules():
        for name, parameter in child._parameters.items():
            if parameter is None or not parameter.is_meta or parameter in unread:
                continue
            made = real.get(id(parameter))
            if made is None:
                empty = _empty(memory, parameter.shape, device, torch.float32 if parameter in in_full else dtype)
                made = real[id(parameter)] = nn.Parameter(empty, requires_grad=False)
            child._parameters[name] = made
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = buffer.to(device)


def _empty(pool: MemoryPool, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    return pool.empty(shape, dtype) if device.type == "cpu" else torch.empty(shape, device=device, dtype=dtype)


def _shards(module: nn.Module) -> dict[str, Shard]:
    """Returns which part of which tensor this rank has; nothing of those that it has whole."""
    shards: dict[str, Shard] = {}
    for name, child in module.named_modules():
        if isinstance(child, Shardable | MergedLinear):
            prefix = name.rpartition(".")[0] if isinstance(child, MergedLinear) else name
            shards |= {f"{prefix}.{parameter}".lstrip("."): shard for parameter, shard in child.shards.items()}
    return shards


def _part(tensor: LazyTensor, shard: Shard) -> LazyTensor:
    return tensor.columns(*shard.ranges) if shard.dim else tensor.rows(*shard.ranges)


def _slots(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Returns where each tensor of a checkpoint belongs, merged linears by the names of their parts."""
    slots: dict[str, Tensor] = {}
    merged: set[str] = set()
    for name, child in module.named_modules(prefix=prefix):
        if isinstance(child, MergedLinear):
            parent = name.rpartition(".")[0]
            merged.add(name)
            slots |= {f"{parent}.{part}".lstrip("."): rows for part, rows in child.slots().items()}
    for name, parameter in module.named_parameters(prefix=prefix):
        if name.rpartition(".merged.")[0] not in merged:
            slots[name] = parameter.detach()
    return slots
